"""Six small synthetic videos and settings that train on them in seconds; shared by tests of whole runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from tools.make_shards import main as make_shards
from tools.make_synthetic import main as make_synthetic
from train.distributed import LAUNCH_VARIABLES
from train.main import main as train

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "data.num_clips": 8,
    "data.clip_frames": 4,
    "data.resize": 18,
    "data.crop": 16,
    "encoder.clips_per_forward": 4,
    "detector.num_steps": 16,
    "detector.neck_dim": 16,
    "detector.fc_dim": 32,
    "detector.head_dim": 16,
    "detector.roi_bins": 4,
    "optimizer.batch_size": 2,
    "optimizer.warmup_steps": 2,
    "run.epochs": 2,
    "run.eval_every": 2,
    "run.log_every": 1,
    "run.device": "cpu",
}


def make_shards_of(folder: Path) -> Path:
    """Four training and two validation videos of 2 to 4 s, packed; returns the folder of shards."""
    options = ["--size", "24", "--shortest", "2", "--longest", "4", "--train", "4", "--val", "2", "--quiet"]
    made = CliRunner().invoke(make_synthetic, ["--out", str(folder / "raw"), *options])
    assert made.exit_code == 0, made.output
    packing = [str(folder / "raw" / "videos"), str(folder / "raw" / "annotations.json"), "--copy", "--quiet"]
    packed = CliRunner().invoke(make_shards, [*packing, "--out", str(folder / "shards")])
    assert packed.exit_code == 0, packed.output
    return folder / "shards"


def arguments(shards: Path, out: Path, **changes: object) -> list[str]:
    """Command-line arguments of train/main.py for a small run; changes: settings with __ for the dot."""
    values = {"data.shards": shards, **SMALL}
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return ["--recipe", "demo", "--out", str(out), "--quiet", *sets]


def run(shards: Path, out: Path, *flags: str, quiet: bool = True, **changes: object):
    """Train in this process; returns click's result."""
    command_line = arguments(shards, out, **changes)
    if not quiet:
        command_line.remove("--quiet")
    return CliRunner().invoke(train, [*command_line, *flags])


def start(shards: Path, out: Path, *flags: str, launcher: int = 0, **changes: object) -> subprocess.Popen:
    """Train in a process of its own, or in `launcher` processes under the deepspeed launcher."""
    script = [str(ROOT / "train" / "main.py"), *arguments(shards, out, **changes), *flags]
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(launcher)]
    return _process((deepspeed if launcher else [sys.executable]) + script)


def start_and_hold(shards: Path, out: Path, step: int, **changes: object) -> subprocess.Popen:
    """Train in a process of its own that stands still (SIGSTOP) after `step` steps; SIGCONT lets it go on."""
    script = [str(ROOT / "tests" / "held_run.py"), str(step), *arguments(shards, out, **changes)]
    process = _process([sys.executable, *script])
    deadline = time.monotonic() + 90
    seen = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (change := os.waitid(os.P_PID, process.pid, seen)) is None:
        assert time.monotonic() < deadline, f"no step {step} after 90 s"
        time.sleep(0.02)
    assert change.si_code == os.CLD_STOPPED, process.communicate()[1]
    return process


def weights(out: Path) -> dict[str, Tensor]:
    """Of a run's last checkpoint."""
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), name


def _process(command: list[str]) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
