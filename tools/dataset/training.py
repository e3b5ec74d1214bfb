"""How long and how fast to train: epochs, batch size and learning rates for a packed data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.order import steps_per_epoch
from pipeline.records import PackedVideo
from pipeline.samples import samples_of
from pipeline.text import counted
from tools.dataset.windowing import NUM_STEPS, OVERLAP

SMALL_HOURS = 10  # of packed video: more than that is trained from pretrained weights, on a GPU
I3D = {"backbone": "i3d", "reversible": False}


@dataclass(frozen=True)
class Start:
    """What training begins with, and the settings that follow from it alone.

    recipe: the shipped one to copy. steps_per_clip: feature steps that one clip stands for. resize: pixels.
    least_steps, least_epochs: with fewer, little is learned (LOG.md). fewest_feature_steps: see
    choose_windowing.
    """

    recipe: str
    clip_frames: int
    resize: int
    encoder_lr: float
    detector_lr: float
    batch_size: int
    reason: str
    least_epochs: int
    least_steps: int = 900
    validations: int = 6  # in a run: the second comes after a third of it
    steps_per_clip: int = 1
    fewest_feature_steps: int = NUM_STEPS[0]
    encoder: Mapping[str, Any] = field(default_factory=dict)


SCRATCH = Start(
    recipe="own_videos",
    clip_frames=8,
    resize=56,
    encoder_lr=5e-3,
    detector_lr=5e-3,
    batch_size=2,
    reason=f"for random weights, which up to {SMALL_HOURS} hours of video are trained from here",
    least_epochs=20,
)
PRETRAINED = Start(
    recipe="activitynet_r2plus1d34",
    clip_frames=16,
    resize=128,
    encoder_lr=5e-7,
    detector_lr=5e-4,
    batch_size=4,
    reason=f"for pretrained encoder.weights; random ones want {SCRATCH.encoder_lr:g}",
    least_epochs=6,
)
I3D_GPU = Start(
    recipe="own_videos_i3d",
    clip_frames=16,
    resize=128,
    encoder_lr=1e-4,
    detector_lr=1e-3,
    batch_size=2,
    reason="for the pretrained weights, which are there",
    least_epochs=6,
    least_steps=340,
    validations=3,
    encoder=I3D,
)
I3D_CPU = replace(
    I3D_GPU,
    recipe="own_videos_i3d_cpu",
    clip_frames=8,
    resize=112,
    reason=f"{I3D_GPU.reason}; sizes are those of a machine without a GPU",
    steps_per_clip=2,
    fewest_feature_steps=48,
)


def choose_start(videos: Sequence[PackedVideo], weights: Path | None, *, gpu: bool) -> Start:
    """What to begin with: I3D's weights if they are there, else random ones up to SMALL_HOURS of video."""
    if weights is not None:
        return I3D_GPU if gpu else I3D_CPU
    small = sum(video.duration or 0.0 for video in videos) <= 3600 * SMALL_HOURS
    return SCRATCH if small else PRETRAINED


def training_advice(
    packed: Sequence[PackedVideo], data: Mapping[str, Any], start: Start, weights: Path | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The groups `encoder`, `optimizer` and `run`, and a sentence for some settings, by dotted name.

    data: the settings under `data` that were chosen for these videos.
    """
    train = [video for video in packed if video.subset == data["train_subset"]]
    windows = len(samples_of(train, window_seconds=data.get("window_seconds"), overlap=OVERLAP))
    steps = max(1, steps_per_epoch(windows, batch_size=start.batch_size, world_size=1))
    epochs = max(start.least_epochs, -(-start.least_steps // steps))
    settings: dict[str, dict[str, Any]] = {
        "optimizer": {
            "encoder_lr": start.encoder_lr,
            "detector_lr": start.detector_lr,
            "batch_size": start.batch_size,
        },
        "run": {"epochs": epochs, "eval_every": max(1, epochs // start.validations)},
    }
    if weights is not None:
        settings = {"encoder": {**start.encoder, "weights": str(weights)}, **settings}
    return settings, {
        "optimizer.encoder_lr": start.reason,
        "run.epochs": f"{counted(windows, 'window')} of training video, {start.batch_size} at a time, are "
        f"{counted(steps, 'step')} an epoch and {steps * epochs} in all; with fewer than {start.least_steps} "
        f"{'less' if weights else 'little'} is learned",
    }
