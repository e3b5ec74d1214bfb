"""Recommends settings for a packed data set, by arithmetic on what dataset.json says of its videos."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset import Dataset
from pipeline.records import PackedVideo
from pipeline.windows import clip_frame_numbers, windows_of
from tools.dataset.explanations import reasons_of, warnings_of
from tools.dataset.names import choose_subsets
from tools.dataset.training import Start, choose_start, training_advice
from tools.dataset.windowing import OVERLAP, Windowing, choose_windowing

SEPARATORS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # also of camel case
SIDED = re.compile(r"(left|right)(wards?|most|hand(ed)?)?", re.IGNORECASE)


def coverage_of(
    video: PackedVideo, window_seconds: float | None, clips: Mapping[str, int]
) -> dict[str, float]:
    """What the clips of a video's first window hold: share of its frames, and of its time.

    clips: num_clips, clip_frames and stride_frames. A clip holds every `stride_frames`-th frame from its
    first to its last; the time between counts as covered.
    """
    duration = video.duration or 0.0
    window = windows_of(duration, window_seconds=window_seconds, overlap=OVERLAP)[0]
    frames = clip_frame_numbers(window, fps=video.fps, num_frames=video.num_frames, **clips)
    inside = min(video.num_frames, max(1, round((window[1] - window[0]) * video.fps)))
    spans = np.zeros(video.num_frames + 1, dtype=np.int64)
    np.add.at(spans, frames[:, 0], 1)
    np.add.at(spans, frames[:, -1] + 1, -1)
    covered = int((np.cumsum(spans)[:-1] > 0).sum())
    return {
        "frames": round(min(1.0, len(np.unique(frames)) / inside), 4),
        "time": round(min(1.0, covered / inside), 4),
    }


def choose_clips(videos: Sequence[PackedVideo], windowing: Windowing, start: Start) -> dict[str, int]:
    """num_clips, clip_frames and stride_frames: one clip per feature step, for a clip gives one feature.

    A costly encoder has a clip for every second step. A clip has 16 frames, as in pretraining, or 8 where 16
    would hold every frame more than six times and where the start wants so. The stride spreads a clip over
    its share of the median window, at most 4 frames: wider, motion is lost.
    """
    seconds = float(np.median([video.duration or 0.0 for video in videos]))
    seconds = min(seconds, windowing.window_seconds or seconds)
    frames = seconds * float(np.median([video.fps for video in videos]))
    num_clips = windowing.num_steps // start.steps_per_clip
    length = 8 if num_clips * 16 > 6 * frames else start.clip_frames
    stride = int(np.clip(frames / num_clips // length, 1, 4))
    return {"num_clips": num_clips, "clip_frames": length, "stride_frames": stride}


def choose_sizes(videos: Sequence[PackedVideo], start: Start) -> tuple[int, int]:
    """Short side after decoding, and the square cut from it, pixels; no larger than the videos.

    128 and 112 fit most pretrained backbones; 112 and 96 train one of them on two CPU cores, 56 and 48 a
    small one from random weights.
    """
    side = int(np.median([min(video.width, video.height) for video in videos]))
    resize = max(8, min(side, start.resize))
    return resize, max(8, resize * 7 // 8 // 8 * 8)


def step_seconds(videos: Sequence[PackedVideo], windowing: Windowing) -> dict[str, float]:
    """Length of a feature step in the median and the longest video: {"p50": ..., "p100": ...}."""
    lengths = [min(video.duration or 0.0, windowing.window_seconds or float("inf")) for video in videos]
    return {
        "p50": round(float(np.median(lengths)) / windowing.num_steps, 4),
        "p100": round(max(lengths) / windowing.num_steps, 4),
    }


def recommend(
    dataset: Dataset, statistics: Mapping[str, Any], weights: Path | None = None, *, gpu: bool = False
) -> dict[str, Any]:
    """The recipe to copy, settings (nested, as in it), the reason of each group, figures, and warnings.

    statistics: of statistics_of. weights: a file with I3D's, None without. gpu: whether training will have
    one. Raises ValueError when the data set has no packed video.
    """
    packed = [video for _, video in sorted(dataset.videos.items()) if video.reject is None]
    if not packed:
        raise ValueError(f"{dataset.folder}: no packed video in it, so no settings fit")
    start = choose_start(packed, weights, gpu=gpu)
    windowing = choose_windowing(packed, start.fewest_feature_steps)
    clips = choose_clips(packed, windowing, start)
    data = data_settings(dataset, statistics, windowing, clips, choose_sizes(packed, start))
    figures = figures_of(packed, windowing, clips)
    training, training_reasons = training_advice(packed, data, start, weights)
    return {
        "start": start.recipe,
        "settings": {"data": data, "detector": {"num_steps": windowing.num_steps}, **training},
        "reasons": reasons_of(data, statistics, figures, windowing) | training_reasons,
        **figures,
        "warnings": warnings_of(data, statistics, figures),
    }


def data_settings(
    dataset: Dataset,
    statistics: Mapping[str, Any],
    windowing: Windowing,
    clips: Mapping[str, int],
    sizes: tuple[int, int],
) -> dict[str, Any]:
    """The settings under `data`; sizes: resize and crop."""
    train, val = choose_subsets(statistics["subsets"])
    data: dict[str, Any] = {"shards": str(dataset.folder), "train_subset": train, "val_subset": val}
    if windowing.window_seconds is not None:
        data |= {"window_seconds": windowing.window_seconds, "window_overlap": OVERLAP}
    resize, crop = sizes
    data |= {**clips, "resize": resize, "crop": crop}
    if sided(dataset.classes):
        data["flip"] = 0.0
    return data


def figures_of(
    packed: Sequence[PackedVideo], windowing: Windowing, clips: Mapping[str, int]
) -> dict[str, Any]:
    """What the settings can reach at best: feature steps, coverage by clips, actions that can be matched."""
    by_length = sorted(packed, key=lambda video: video.duration or 0.0)
    return {
        "step_seconds": step_seconds(packed, windowing),
        "coverage": {
            f"p{p}": coverage_of(by_length[p * (len(packed) - 1) // 100], windowing.window_seconds, clips)
            for p in (50, 95, 100)
        },
        "matchable": {f"tiou_{tiou:g}": round(windowing.matchable(tiou), 4) for tiou in (0.5, 0.7, 0.9)},
        "unmatchable_actions": int((windowing.best < 0.5 - 1e-9).sum()),
        "proposals": windowing.num_steps * (windowing.num_steps + 1) // 2,
    }


def sided(classes: Sequence[str]) -> list[str]:
    """The class names that would be wrong of a mirrored video."""
    return [name for name in classes if any(map(SIDED.fullmatch, SEPARATORS.split(name)))]
