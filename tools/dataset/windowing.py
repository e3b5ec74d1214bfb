"""Chooses the windows of a data set: their length and number of feature steps T, by what proposals can match.

The measure is the detector's own: its proposals are all segments with whole ends on a grid of T feature steps
over a window. So the best tIoU that any of them has with an action bounds what can be detected, before a
single step of training; `best_tiou` computes that bound exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.records import PackedVideo
from pipeline.windows import windows_of

NUM_STEPS = (64, 128, 192, 256)  # values of T; the map of proposals grows with the square of it
WINDOW_SECONDS = (5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600)
OVERLAP = 0.5  # of neighbouring windows: an action of half a window lies wholly in one
TRAINED_TIOU = 0.7  # tIoU from which the detector's first stage trains offsets
MIN_TRAINED = 0.96  # share of the actions that must have a proposal of that tIoU in windows of whole videos
MAX_SEARCHED = 1000  # videos that the search uses, evenly spread; the chosen settings are checked on all


@dataclass(frozen=True)
class Windowing:
    """Window length (None: whole videos) and T, and the best tIoU a proposal has with each action (A,)."""

    window_seconds: float | None
    num_steps: int
    best: NDArray[np.float64]

    def matchable(self, tiou: float) -> float:
        """Share of the actions with a proposal of at least this tIoU."""
        return float((self.best >= tiou - 1e-9).mean()) if len(self.best) else 1.0

    @property
    def trained(self) -> float:
        """Share of the actions with a proposal whose offsets are trained."""
        return self.matchable(TRAINED_TIOU)


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


def windowing_of(videos: Sequence[PackedVideo], window_seconds: float | None, num_steps: int) -> Windowing:
    """How well proposals can match the actions of these videos with a window length and T."""
    best = []
    for video in videos:
        if video.actions and video.duration:
            segments = np.array([(action.start, action.end) for action in video.actions])
            windows = windows_of(video.duration, window_seconds=window_seconds, overlap=OVERLAP)
            best.append(best_tiou(segments, windows, num_steps))
    return Windowing(window_seconds, num_steps, np.concatenate(best) if best else np.zeros(0))


def choose_windowing(videos: Sequence[PackedVideo], least_steps: int = NUM_STEPS[0]) -> Windowing:
    """Whole videos and the smallest T with which enough actions are trained on; else the windows with most.

    Windows within half a percent of the best count as equal: then the smaller T, then the longer window.
    least_steps: a T that is tried for whole videos, too, besides NUM_STEPS.
    """
    searched = list(videos)[:: -(-len(videos) // MAX_SEARCHED)]
    for num_steps in sorted({least_steps, *NUM_STEPS}):
        if windowing_of(searched, None, num_steps).trained >= MIN_TRAINED:
            return windowing_of(videos, None, num_steps)
    longest = max(video.duration or 0.0 for video in videos)
    lengths = [seconds for seconds in WINDOW_SECONDS if seconds < longest] or [WINDOW_SECONDS[0]]
    candidates = [windowing_of(searched, seconds, steps) for steps in NUM_STEPS[1:] for seconds in lengths]
    candidates.append(windowing_of(searched, None, NUM_STEPS[-1]))
    most = max(one.trained for one in candidates)
    good = [one for one in candidates if one.trained >= most - 0.005]
    chosen = min(good, key=lambda one: (one.num_steps, -(one.window_seconds or longest)))
    return windowing_of(videos, chosen.window_seconds, chosen.num_steps)
