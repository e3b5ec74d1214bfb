"""What plan says of a run against what the device held: the whole road at the shapes of the papers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.annotations import Action
from pipeline.packing.encoder import encode_video
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo
from tools.gpu_checks.rows import CheckContext, require
from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
from tools.planning.estimate import FrameSize, estimate
from train.loop import train_step
from train.run import Run
from train.settings import Settings, load_settings

STEPS = 2
BOUND = 0.10  # of the estimate
FPS = 15
VIDEOS = 4


@dataclass(frozen=True)
class Shape:
    """A shipped recipe, changed; num_frames, height, width: of the made-up videos. A rehearsal is tiny."""

    recipe: str
    num_frames: int
    height: int
    width: int
    overrides: tuple[str, ...]


def whole_window(num_frames: int, *settings: str) -> Shape:
    """A window of 224x224, Re2TAL's recipe: decoded and computed in parts of 64 MiB, always reversed."""
    small = ("data.decode_chunk_mib=64", "encoder.slice_mib=64", "encoder.beta.schedule=constant")
    return Shape("thumos_video_swin_t", num_frames, 256, 456, (*small, "data.window_seconds=null", *settings))


SHAPES = {
    "R(2+1)D-34, 128 clips of 16x112x112, 0.3, batch 4": Shape(
        "activitynet_r2plus1d34", 128 * 16, 128, 224, ("encoder.clips_per_forward=4",)
    ),
    "Video Swin-T, 512 frames of 224x224": whole_window(512),
    "Video Swin-T, 4 clips of 128x224x224, 0.3": whole_window(
        512, "data.num_clips=4", "data.clip_frames=128", "encoder.clip_ratio=0.3", "encoder.steps_per_clip=32"
    ),
    "VideoMAE-L, 48 clips of 16x224x224": whole_window(
        768,
        *("encoder.backbone=videomae_l", "encoder.leapfrog=false", "encoder.steps_per_clip=null"),
        *("data.num_clips=48", "data.clip_frames=16"),
    ),
}
TINY = (
    *("encoder.backbone=r2plus1d_tiny", "encoder.leapfrog=false", "encoder.steps_per_clip=null"),
    *("data.num_clips=8", "data.clip_frames=4", "data.crop=32", "data.resize=36"),
    *("detector.num_steps=16", "run.device=cpu"),
)


def device_mib() -> float:
    """MiB in use on the first GPU by all processes, by NVML (nvidia-smi asks it)."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def moving_gradient(shape: Shape) -> Iterator[NDArray[np.uint8]]:
    """Pictures (H, W, 3) that cost nothing to make and little to encode."""
    y, x = np.mgrid[: shape.height, : shape.width]
    for frame in range(shape.num_frames):
        yield np.stack([x + 2 * frame, y + frame, x + y], axis=-1).astype(np.uint8)


def pack_videos(folder: Path, shape: Shape) -> Path:
    """A data set of VIDEOS equal videos for training and one for validation; returns its folder."""
    data = encode_video(moving_gradient(shape), fps=FPS)
    seconds = shape.num_frames / FPS
    video = PackedVideo(
        key="video",
        subset="training",
        duration=seconds,
        fps=FPS,
        num_frames=shape.num_frames,
        width=shape.width,
        height=shape.height,
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


def settings_of(context: CheckContext, shape: Shape) -> Settings:
    """The shape's recipe on made-up videos."""
    shards = pack_videos(context.folder / "shards", shape)
    overrides = [f"data.shards={shards}", "data.train_subset=training", "data.val_subset=validation"]
    overrides += ["run.epochs=100", "encoder.weights=null", *shape.overrides]
    return load_settings(Path(shape.recipe), [*overrides, *(TINY if context.rehearsal else ())])


def planned_mib(settings: Settings, shape: Shape) -> float:
    """What `leantad plan` says."""
    config = DeepSpeedMemoryConfig.of_run(settings, 1)
    found = estimate(settings, config, num_classes=2, source=FrameSize(shape.height, shape.width))
    return found.total / 2**20


def plan_holds(context: CheckContext, *, name: str) -> str:
    """Loader, engine and some steps; PyTorch's allocator returns nothing, so what is held is the peak."""
    before = 0.0 if context.rehearsal else device_mib()
    shape = replace(SHAPES[name], num_frames=32) if context.rehearsal else SHAPES[name]
    settings = settings_of(context, shape)
    planned = planned_mib(settings, shape)
    run = Run(settings, context.folder / "run", resume=False)
    batches = iter(run.train_loader)
    for _ in range(STEPS):
        train_step(run, list(islice(batches, 1)), interrupted=False)
    run.train_loader.close()
    if context.rehearsal:
        return f"plan {planned:.0f} MiB; nothing to compare with"
    held = device_mib() - before
    apart = (held - planned) / planned
    allocated, reserved = torch.cuda.max_memory_allocated() >> 20, torch.cuda.max_memory_reserved() >> 20
    each = held / settings.optimizer.batch_size
    text = f"plan {planned:.0f} MiB, device {held:.0f} MiB ({apart:+.1%}), {each:.0f} MiB per video"
    text = f"{text}; of them by torch {allocated} allocated, {reserved} reserved"
    return require(abs(apart) <= BOUND, text)
