"""Whole runs on the GPU: the demo's videos, a run that is killed and resumed, a soak."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.gpu_checks.rows import CheckContext, SkipRow, require
from tools.machine.checks import ROOT
from train.loop import train_step
from train.run import Run
from train.settings import load_settings

SOAK_STEPS = 300
SMALL: tuple[str, ...] = (
    "data.num_clips=8",
    "data.clip_frames=4",
    "encoder.clips_per_forward=8",
    "detector.num_steps=16",
)
SMALL += ("detector.neck_dim=32", "detector.fc_dim=64", "detector.head_dim=32", "optimizer.batch_size=2")


def call(*command: str | Path) -> None:
    """Run one of our commands; raises with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()
        errors = [line for line in lines if "error" in line.lower()]
        raise ValueError(f"{Path(command[0]).name}: exit code {done.returncode}: {(errors or lines)[-1]}")


def demo_videos(context: CheckContext, number: int) -> Path:
    """The demo's videos (VP9, 48x48: too small for the GPU's decoder), fewer of them, packed."""
    raw, shards = context.folder / "raw", context.folder / "shards"
    quiet = "--quiet"
    call("tools/make_synthetic.py", "--out", raw, "--train", str(number), "--val", "8", quiet)
    annotations = raw / "annotations.json"
    call("tools/make_shards.py", raw / "videos", annotations, "--out", shards, "--copy", quiet)
    return shards


def training_command(context: CheckContext, shards: Path, out: Path, *extra: str) -> list[str | Path]:
    """`train` with the demo's recipe, made small."""
    settings = (f"data.shards={shards}", f"run.device={context.device}", "run.deterministic=true", *SMALL)
    sets = [part for setting in settings + extra for part in ("--set", setting)]
    return ["train/main.py", "--recipe", "demo", "--out", out, "--quiet", *sets]


def demo_road(context: CheckContext) -> str:
    """Render, pack, train an epoch, evaluate: as `make demo`, on fewer videos."""
    shards = demo_videos(context, 4 if context.rehearsal else 24)
    out = context.folder / "run"
    call(*training_command(context, shards, out, "run.epochs=1"))
    call("train/eval.py", "--checkpoint", out, "--out", context.folder / "detections.json", "--quiet")
    return "rendered, packed, trained and evaluated"


def killed_and_resumed(context: CheckContext) -> str:
    """A run killed with -9 after a checkpoint and resumed has the weights of one that was not, bitwise."""
    shards = demo_videos(context, 4 if context.rehearsal else 12)
    epochs = "run.epochs=2" if context.rehearsal else "run.epochs=4"
    often = "run.checkpoint_every=2"
    whole, killed = context.folder / "whole", context.folder / "killed"
    call(*training_command(context, shards, whole, epochs, often))
    command = [sys.executable, *map(str, training_command(context, shards, killed, epochs, often))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (killed / "checkpoints" / "last").exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    if (killed / "metrics.json").exists():
        raise SkipRow("the run was over before it could be killed")
    call("train/main.py", "--resume", "--out", killed, "--quiet")
    weights = [load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (whole, killed)]
    equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return require(equal, "weights bitwise equal" if equal else "weights differ")


def soak(context: CheckContext) -> str:
    """Memory, file descriptors and threads of a run after a sixth of the steps and at their end."""
    shards = demo_videos(context, 4 if context.rehearsal else 24)
    steps = 12 if context.rehearsal else SOAK_STEPS
    overrides = [f"data.shards={shards}", f"run.device={context.device}", "run.epochs=1000", *SMALL]
    run = Run(load_settings(Path("demo"), overrides), context.folder / "run", resume=False)
    batches = iter(run.train_loader)

    def state() -> dict[str, int]:
        device = torch.cuda.memory_reserved() >> 20 if context.device == "cuda" else 0
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        return {"device MiB": device, "host MiB": resident, "descriptors": descriptors, "threads": threads}

    for step in range(steps):
        train_step(run, list(islice(batches, 1)), interrupted=False)
        if step == steps // 6:
            before = state()
    after = state()
    run.train_loader.close()
    text = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before)
    return require(all(after[name] <= 1.02 * before[name] + 2 for name in before), f"{steps} steps: {text}")
