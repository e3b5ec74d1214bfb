"""Settings that fit a packed data set, each with its reason. Pure arithmetic on a Dataset.

The yardstick is the detector's own: its proposals are all segments with whole ends on a grid of T feature
steps over a window. So the best tIoU that any of them has with an action bounds what can be found, before
a single step of training; `best_tiou` computes that bound exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.records import PackedVideo
from pipeline.text import first_names
from pipeline.windows import clip_frame_numbers, windows_of
from tools.dataset.names import choose_subsets, name_warnings

STEPS = (64, 128, 192, 256)  # the map of proposals grows with the square of it
LADDER = (5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600)  # window lengths, seconds
OVERLAP = 0.5  # of neighbouring windows: an action of half a window lies wholly in one
TEACHABLE = 0.7  # tIoU from which the detector's first stage learns offsets
ENOUGH = 0.96  # share of actions that must be teachable before whole videos are given up
LOOKED_AT = 1000  # videos that the search looks at, evenly spread; the chosen settings are checked on all
FEW = 10  # training actions below which a class is called rare


@dataclass(frozen=True)
class Fit:
    """Window length (None: whole videos) and T, and the best tIoU a proposal has with each action (A,)."""

    window_seconds: float | None
    num_steps: int
    best: NDArray[np.float64]

    def share(self, tiou: float) -> float:
        """Share of the actions with a proposal of at least this tIoU."""
        return float((self.best >= tiou - 1e-9).mean()) if len(self.best) else 1.0


def best_tiou(
    segments: NDArray[np.float64], windows: Sequence[tuple[float, float]], num_steps: int
) -> NDArray[np.float64]:
    """The largest tIoU of each action with any proposal of any window.

    segments: (A, 2) seconds; a window's proposals are the segments with whole ends in 0..T steps of it. The
    best one ends at a neighbouring whole step on each side. Returns (A,).
    """
    start, end = np.array(windows, dtype=np.float64).T[:, :, None]  # (W, 1) each
    step = (end - start) / num_steps
    first = (segments[:, 0] - start) / step  # (W, A), in steps
    last = (segments[:, 1] - start) / step
    best = np.zeros_like(first)
    for begin in (np.floor(first), np.floor(first) + 1):
        for stop in (np.ceil(last) - 1, np.ceil(last)):
            low, high = np.clip(begin, 0, num_steps - 1), np.clip(stop, 1, num_steps)
            high = np.maximum(high, low + 1)
            inter = np.maximum(np.minimum(high, last) - np.maximum(low, first), 0)
            union = (high - low) + (last - first) - inter
            best = np.maximum(best, inter / union)
    return np.asarray(best.max(0))


def fit_of(videos: Sequence[PackedVideo], window_seconds: float | None, num_steps: int) -> Fit:
    """How well proposals can match the actions of these videos under a window length and T."""
    found = []
    for video in videos:
        if video.actions and video.duration:
            segments = np.array([(action.start, action.end) for action in video.actions])
            windows = windows_of(video.duration, window_seconds=window_seconds, overlap=OVERLAP)
            found.append(best_tiou(segments, windows, num_steps))
    return Fit(window_seconds, num_steps, np.concatenate(found) if found else np.zeros(0))


def choose_fit(videos: Sequence[PackedVideo]) -> Fit:
    """Whole videos and the smallest T that let enough actions be taught; else the windows that let most.

    Windows within half a percent of the best count as equal: then the smaller T, then the longer window.
    """
    looked_at = list(videos)[:: -(-len(videos) // LOOKED_AT)]
    for num_steps in STEPS:
        whole = fit_of(looked_at, None, num_steps)
        if whole.share(TEACHABLE) >= ENOUGH:
            return fit_of(videos, None, num_steps)
    longest = max(video.duration or 0.0 for video in videos)
    lengths = [seconds for seconds in LADDER if seconds < longest] or [LADDER[0]]
    fits = [fit_of(looked_at, seconds, steps) for steps in STEPS[1:] for seconds in lengths]
    fits.append(fit_of(looked_at, None, STEPS[-1]))
    most = max(fit.share(TEACHABLE) for fit in fits)
    good = [fit for fit in fits if fit.share(TEACHABLE) >= most - 0.005]
    chosen = min(good, key=lambda fit: (fit.num_steps, -(fit.window_seconds or longest)))
    return fit_of(videos, chosen.window_seconds, chosen.num_steps)


def coverage_of(
    video: PackedVideo, window_seconds: float | None, clips: Mapping[str, int]
) -> dict[str, float]:
    """What the clips of a video's first window see: share of its frames, and of its time.

    clips: num_clips, clip_frames and stride_frames. A clip sees every `stride_frames`-th frame from its first
    to its last; the time between counts as covered.
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


def choose_clips(videos: Sequence[PackedVideo], fit: Fit) -> dict[str, int]:
    """num_clips, clip_frames and stride_frames: one clip per feature step, for a clip gives one feature.

    A clip has 16 frames, as in pretraining, or 8 where 16 would see every frame more than six times. The
    stride spreads a clip over its share of the median window, at most 4 frames: wider, motion is lost.
    """
    seconds = float(np.median([video.duration or 0.0 for video in videos]))
    seconds = min(seconds, fit.window_seconds or seconds)
    frames = seconds * float(np.median([video.fps for video in videos]))
    length = 8 if fit.num_steps * 16 > 6 * frames else 16
    stride = int(np.clip(frames / fit.num_steps // length, 1, 4))
    return {"num_clips": fit.num_steps, "clip_frames": length, "stride_frames": stride}


def choose_sizes(videos: Sequence[PackedVideo]) -> tuple[int, int]:
    """Short side after decoding, and the square cut from it, pixels: 128 and 112 where the videos have it."""
    side = int(np.median([min(video.width, video.height) for video in videos]))
    resize = max(8, min(side, 128))
    return resize, max(8, resize * 7 // 8 // 8 * 8)


def step_seconds(videos: Sequence[PackedVideo], fit: Fit) -> dict[str, float]:
    """Length of a feature step in the median and the longest video: {"p50": ..., "p100": ...}."""
    lengths = [min(video.duration or 0.0, fit.window_seconds or float("inf")) for video in videos]
    return {
        "p50": round(float(np.median(lengths)) / fit.num_steps, 4),
        "p100": round(max(lengths) / fit.num_steps, 4),
    }


def advice_of(dataset: Dataset, facts: dict[str, Any]) -> dict[str, Any]:
    """Settings (nested, as in a recipe), the reason of each group, the figures behind them, and warnings.

    facts: what facts.facts_of said. Raises ValueError when the data set has no packed video.
    """
    packed = [video for _, video in sorted(dataset.videos.items()) if video.reject is None]
    if not packed:
        raise ValueError(f"{dataset.folder}: no packed video in it, so no settings fit")
    fit = choose_fit(packed)
    clips, (resize, crop) = choose_clips(packed, fit), choose_sizes(packed)
    train, val = choose_subsets(facts["subsets"])
    data: dict[str, Any] = {"shards": str(dataset.folder), "train_subset": train, "val_subset": val}
    if fit.window_seconds is not None:
        data |= {"window_seconds": fit.window_seconds, "window_overlap": OVERLAP}
    data |= {**clips, "resize": resize, "crop": crop}
    if sided(dataset.classes):
        data["flip"] = 0.0
    by_length = sorted(packed, key=lambda video: video.duration or 0.0)
    figures = {
        "step_seconds": step_seconds(packed, fit),
        "coverage": {
            f"p{p}": coverage_of(by_length[p * (len(packed) - 1) // 100], fit.window_seconds, clips)
            for p in (50, 95, 100)
        },
        "matchable": {f"tiou_{tiou:g}": round(fit.share(tiou), 4) for tiou in (0.5, 0.7, 0.9)},
        "unmatchable_actions": int((fit.best < 0.5 - 1e-9).sum()),
        "proposals": fit.num_steps * (fit.num_steps + 1) // 2,
    }
    settings = {"data": data, "detector": {"num_steps": fit.num_steps}}
    return {
        "settings": settings,
        "reasons": reasons_of(data, facts, figures, fit),
        **figures,
        "warnings": warnings_of(data, facts, figures),
    }


def sided(classes: Sequence[str]) -> list[str]:
    """The class names that a mirrored video would make wrong."""
    return [name for name in classes if any(word in name.lower() for word in ("left", "right"))]


def reasons_of(
    data: Mapping[str, Any], facts: Mapping[str, Any], figures: Mapping[str, Any], fit: Fit
) -> dict[str, str]:
    """One sentence for each setting that the data decide, by its dotted name."""
    step, lengths, seen = figures["step_seconds"], facts["action_seconds"], figures["coverage"]
    short, long = (f"{lengths.get(name, 0.0):.3g} s" for name in ("p1", "p99"))
    taught = (
        f"{100 * fit.share(TEACHABLE):.1f} % of the actions have a proposal of tIoU {TEACHABLE:g} or more"
    )
    if fit.window_seconds is None:
        window = f"no window_seconds, a video is one window: {taught}"
    else:
        held = f"actions up to {fit.window_seconds * OVERLAP:g} s lie wholly in one window; 99 % last at most"
        window = f"{taught}; {held} {long}"
    median, large = (f"{100 * seen[name]['frames']:.0f} %" for name in ("p50", "p95"))
    reasons = {
        "data.window_seconds": window,
        "data.num_clips": "a clip gives one feature, so one clip per step: they see "
        f"{median} of the frames of a window in the median video, {large} in a long one (p95)",
        "data.resize": f"pictures are {first_names(facts['sizes'], quoted=False)}; crop is 7/8 of a side",
        "detector.num_steps": f"proposals last 1 to {fit.num_steps} steps, a step {step['p50']:.3g} s in the "
        f"median video and {step['p100']:.3g} s in the longest; 98 % of all actions last {short} to {long}",
    }
    if "flip" in data:
        reasons["data.flip"] = (
            "class names tell left from right, and a mirrored video would get the wrong one"
        )
    return reasons


def warnings_of(data: Mapping[str, Any], facts: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """What may go wrong in training, most serious first; one sentence each."""
    total = sum(row["actions"] for row in facts["subsets"].values())
    lost, longest = figures["unmatchable_actions"], facts["action_seconds"].get("p100", 0.0)
    window, low = data.get("window_seconds") or float("inf"), figures["coverage"]["p95"]["time"]
    alike, rejects = facts["overlaps"]["pairs_same_class"], len(facts["rejects"])
    found = [
        (
            lost,
            f"{lost} of {total} actions have no proposal of tIoU 0.5 (shorter than about half a step, or "
            "longer than a window): they can hardly be found",
        ),
        (longest > window, f"the longest action lasts {longest:.4g} s, a window {window:g} s"),
        (
            low < 0.5,
            f"clips cover {100 * low:.0f} % of the time of a long video (p95): actions between them are lost",
        ),
        (len(facts["fps"]) > 1, rate_warning(list(facts["fps"]), facts["packing"])),
        (
            alike,
            f"pairs of actions of one class that overlap: {alike}; soft-NMS lowers the score of one of two",
        ),
        (rejects, f"rejected videos: {rejects}; their actions count as missed in mAP"),
    ]
    return (
        subset_warnings(data, facts["subsets"])
        + ([] if total else ["no packed video has an action: there is nothing to learn"])
        + name_warnings(facts["subsets"], facts["balance"]["per_class"])
        + class_warnings(facts["balance"], data["train_subset"])
        + [text for applies, text in found if applies]
    )


def subset_warnings(data: Mapping[str, Any], subsets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """That there is nothing to validate on, or only what should be kept for the test."""
    if data["val_subset"] != data["train_subset"]:
        return []
    others = [name for name, row in subsets.items() if row["packed"] and name != data["train_subset"]]
    if not others:
        return ["there is one subset only: nothing is left to validate on"]
    return [
        f"nothing is left to validate on but {first_names(others, 5, quoted=False)}, and a test set that "
        "chooses the checkpoint tests no more: keep some training videos apart; or, the custom on THUMOS-14, "
        "put it in val_subset"
    ]


def rate_warning(rates: Sequence[str], packing: Mapping[str, Any]) -> str:
    """What to do about videos of several frame rates, given the options they were packed with."""
    lowest = min(rates, key=float)
    if packing.get("copy"):
        way = "pack without --copy"
    elif packing.get("fps") and not packing.get("upscale"):
        way = f"pack with --fps {lowest}, or let slower videos have frames repeated by --upscale"
    else:
        way = f"pack with --fps {lowest}"
    return f"frame rates differ ({first_names(rates, 4, quoted=False)}): {way}"


def class_warnings(balance: Mapping[str, Any], train: str) -> list[str]:
    """Classes that cannot be learned, or hardly."""
    per_class = balance["per_class"].items()
    unseen = [name for name, counts in per_class if counts and not counts.get(train)]
    unjudged = [name for name, subset in balance["in_one_subset"].items() if subset == train]
    rare = [name for name, counts in per_class if 0 < counts.get(train, 0) < FEW]
    found = [
        (unseen, "without a training action, so it cannot be learned"),
        (unjudged, "in the training subset only, so no evaluation tells how well it is learned"),
        (rare, f"fewer than {FEW} training actions"),
        (balance["without_actions"], "a class without any action"),
    ]
    return [f"{first_names(names, 5, quoted=False)}: {text}" for names, text in found if names]
