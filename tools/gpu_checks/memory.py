"""What plan says of a run against what the device held: the whole road at the shape of ETAD's paper."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import Action
from pipeline.packing.encoder import encode_video
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo
from tools.gpu_checks.rows import CheckContext, require
from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
from tools.planning.estimate import FrameSize, estimate
from train.loop import train_step
from train.optimizer import has_compiler, read_ds_config
from train.run import Run
from train.settings import Settings, load_settings

STEPS = 2
CLIPS_PER_FORWARD = 4  # the fastest that keeps four videos within 2 GiB
BOUND = 0.10  # of the estimate
WIDTH, HEIGHT, FPS = 224, 128, 15
VIDEOS = 4


def device_mib() -> float:
    """MiB in use on the first GPU by all processes, by NVML (nvidia-smi asks it)."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def moving_gradient(num_frames: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures (H, W, 3) that cost nothing to make and little to encode."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for frame in range(num_frames):
        yield np.stack([x + 2 * frame, y + frame, x + y], axis=-1).astype(np.uint8)


def pack_videos(folder: Path, num_frames: int) -> Path:
    """A data set of VIDEOS equal videos for training and one for validation; returns its folder."""
    data = encode_video(moving_gradient(num_frames), fps=FPS)
    seconds = num_frames / FPS
    video = PackedVideo(
        key="video",
        subset="training",
        duration=seconds,
        fps=FPS,
        num_frames=num_frames,
        width=WIDTH,
        height=HEIGHT,
        codec="vp9",
        actions=(Action(0.1 * seconds, 0.3 * seconds, "run"), Action(0.5 * seconds, 0.9 * seconds, "jump")),
        shard=None,
        reject=None,
        source="video",
    )
    keys = {f"video{number}": "training" for number in range(VIDEOS)} | {"last": "validation"}
    samples = [(replace(video, key=key, source=key, subset=subset), data) for key, subset in keys.items()]
    videos, shards = pack_samples(folder, samples)
    write_dataset(folder, classes=["jump", "run"], videos=videos, shards=shards, packing={})
    return folder


def settings_of(context: CheckContext, batch_size: int) -> Settings:
    """ActivityNet's recipe on made-up videos; in a rehearsal a tiny one of its shape."""
    clips, frames = (8, 4) if context.rehearsal else (128, 16)
    shards = pack_videos(context.folder / "shards", clips * frames)
    overrides = [f"data.shards={shards}", f"optimizer.batch_size={batch_size}", "run.epochs=100"]
    overrides += ["encoder.weights=null", f"encoder.clips_per_forward={CLIPS_PER_FORWARD}"]
    if context.rehearsal:
        overrides += ["encoder.backbone=r2plus1d_tiny", "data.num_clips=8", "data.clip_frames=4"]
        overrides += ["data.crop=32", "data.resize=36", "detector.num_steps=16", "run.device=cpu"]
    return load_settings(Path("activitynet_r2plus1d34"), overrides)


def planned_mib(settings: Settings, device: str) -> float:
    """What `leantad plan` says."""
    config = DeepSpeedMemoryConfig.from_ds_config(
        read_ds_config(settings.run.ds_config),
        1,
        device="cpu" if device == "cpu" else "cuda",
        cpp_adam=settings.optimizer.cpu_adam and has_compiler(),
        averages_weights=settings.optimizer.ema_decay > 0,
    )
    found = estimate(settings, config, num_classes=2, source=FrameSize(HEIGHT, WIDTH))
    return found.total / 2**20


def plan_holds(context: CheckContext, *, batch_size: int) -> str:
    """Loader, engine and some steps; PyTorch's allocator returns nothing, so what is held is the peak."""
    before = 0.0 if context.rehearsal else device_mib()
    settings = settings_of(context, batch_size)
    planned = planned_mib(settings, context.device)
    run = Run(settings, context.folder / "run", resume=False)
    batches = iter(run.train_loader)
    for _ in range(STEPS):
        train_step(run, list(islice(batches, 1)), interrupted=False)
    run.train_loader.close()
    if context.rehearsal:
        return f"plan {planned:.0f} MiB; nothing to compare with"
    held = device_mib() - before
    apart = (held - planned) / planned
    text = f"batch {batch_size}: plan {planned:.0f} MiB, device {held:.0f} MiB ({apart:+.1%})"
    return require(abs(apart) <= BOUND, f"{text}, {held / batch_size:.0f} MiB per video")
