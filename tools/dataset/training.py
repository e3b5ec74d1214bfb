"""How long and how fast to train: epochs, batch size and learning rates for a packed data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.order import steps_per_epoch
from pipeline.records import PackedVideo
from pipeline.samples import samples_of
from pipeline.text import counted
from tools.dataset.windowing import OVERLAP

SMALL_HOURS = 10  # of packed video: more than that is trained from pretrained weights, on a GPU
# From random weights, as recipes/own_videos.yaml, and from pretrained ones, as activitynet_r2plus1d34.yaml.
SCRATCH = {"encoder_lr": 5e-3, "detector_lr": 5e-3, "batch_size": 2}
PRETRAINED = {"encoder_lr": 5e-7, "detector_lr": 5e-4, "batch_size": 4}
LEAST_STEPS = 900  # measured on two small sets of real videos (LOG.md)
SCRATCH_EPOCHS, PRETRAINED_EPOCHS = 20, 6  # at least
VALIDATIONS = 6  # in a run: the second comes after a third of it


def is_small(videos: Sequence[PackedVideo]) -> bool:
    """Whether packed videos are few enough to train a small backbone on from random weights."""
    return sum(video.duration or 0.0 for video in videos) <= 3600 * SMALL_HOURS


def training_advice(
    packed: Sequence[PackedVideo], data: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The groups `optimizer` and `run`, and one sentence for some of their settings, by dotted name.

    data: the settings under `data` that were chosen for these videos.
    """
    small = is_small(packed)
    optimizer, least_epochs = (SCRATCH, SCRATCH_EPOCHS) if small else (PRETRAINED, PRETRAINED_EPOCHS)
    batch = int(optimizer["batch_size"])
    train = [video for video in packed if video.subset == data["train_subset"]]
    windows = len(samples_of(train, window_seconds=data.get("window_seconds"), overlap=OVERLAP))
    steps = max(1, steps_per_epoch(windows, batch_size=batch, world_size=1))
    epochs = max(least_epochs, -(-LEAST_STEPS // steps))
    settings: dict[str, dict[str, Any]] = {
        "optimizer": dict(optimizer),
        "run": {"epochs": epochs, "eval_every": max(1, epochs // VALIDATIONS)},
    }
    rates = f"for random weights, which up to {SMALL_HOURS} hours of video are trained from here"
    if not small:
        rates = f"for pretrained encoder.weights; random ones want {SCRATCH['encoder_lr']:g}"
    return settings, {
        "optimizer.encoder_lr": rates,
        "run.epochs": f"{counted(windows, 'window')} of training video, {batch} at a time, are "
        f"{counted(steps, 'step')} an epoch and {steps * epochs} in all; with fewer than {LEAST_STEPS} "
        "little is learned",
    }
