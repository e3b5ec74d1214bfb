"""Confidence intervals by the bootstrap over videos, and the paired comparison of two sets of detections.

What is resampled: the videos of the ground truth, as many as there are, with replacement; a drawn video
brings its true actions and detections along, and counts as often as it was drawn. Detections in videos that
the ground truth lacks count once in every resample. A class whose true actions are all in videos that were
not drawn has no AP in that resample. Interval: percentiles. Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapter 13. Of fewer than FEWEST_VIDEOS there is none: resamples of one video are all
alike, and few videos differ in one direction by chance too often.

A true positive stays one whatever other videos are drawn, so nothing is matched again: each resample weighs
the same sorted detections anew. Copies of a video stand side by side where scores are equal; that raises AP a
little, so that the interval lies somewhat higher than the figure (AutoLoc on THUMOS-14: 21.0 in 19.8 to
23.7). The difference of two sets hardly suffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.text import counted
from train.evaluation.average_precision import curves_of
from train.evaluation.diagnosis import detection_kinds, name_summary, summary_statistic
from train.evaluation.matching import Matches
from train.evaluation.recall import RECALL_TIOU, SHOWN_AN, area_under, average_recall, first_ranks

LEVEL = 0.95
FEWEST_VIDEOS = 6  # of 5, all differ in one direction by chance 2 / 2^5 = 6 % of the time, above 1 - LEVEL
Statistic = Callable[[np.ndarray], np.ndarray]  # how often each video counts (videos,) -> figures (n,)


def draw_videos(num_videos: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each video is drawn, (videos,), once per resample; the same for the same seed."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(num_videos, size=num_videos)
        yield np.bincount(drawn, minlength=num_videos).astype(np.float64)


def resample(statistic: Statistic, num_videos: int, *, resamples: int, seed: int) -> np.ndarray:
    """The statistic of every resample, (resamples, n). ValueError unless there are at least 2 resamples."""
    if resamples < 2:
        raise ValueError(f"bootstrap: got {resamples} resamples, want at least 2 (1,000 are usual)")
    return np.array([statistic(copies) for copies in draw_videos(num_videos, resamples, seed)])


def percentile_interval(samples: np.ndarray) -> np.ndarray:
    """The percentile interval over the first axis: (resamples, ...) -> (2, ...); NaN samples are left out."""
    tail = 50 * (1 - LEVEL)
    bounds = np.full((2, *samples.shape[1:]), np.nan)
    known = ~np.isnan(samples).all(axis=0)
    bounds[:, known] = np.nanpercentile(samples[:, known], [tail, 100 - tail], axis=0)
    return bounds


def class_precision(matched: Matches) -> Statistic:
    """AP of each class and threshold for a weighting of the videos, (K * L,); NaN without true actions."""
    curves, true, num_classes = curves_of(matched), matched.data.true, len(matched.data.labels)

    def figures(copies: np.ndarray) -> np.ndarray:
        num_true = np.bincount(true.label, weights=copies[true.video], minlength=num_classes)
        kept = np.append(copies, 1.0)[matched.detected.video]  # unknown videos, -1, count once
        return curves.area(kept, num_true).T.reshape(-1)

    return figures


def class_means(areas: np.ndarray, num_thresholds: int) -> np.ndarray:
    """mAP of each threshold and their average, (resamples, L + 1), from what `class_precision` gives."""
    table = areas.reshape(len(areas), -1, num_thresholds)
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):  # a resample without a single true action is NaN
        means = np.where(known, table, 0).sum(axis=1) / known.sum(axis=1)
    return np.concatenate([means, means.mean(axis=1, keepdims=True)], axis=1)


def recall_figures(matched: Matches) -> Statistic:
    """AR@AN at SHOWN_AN and the AUC under a weighting of the videos."""
    ranks = first_ranks(matched.data, RECALL_TIOU)

    def figures(copies: np.ndarray) -> np.ndarray:
        curve = average_recall(ranks, copies)
        return np.array([*curve[np.array(SHOWN_AN) - 1], area_under(curve)])

    return figures


def bootstrap(matched: Matches, *, resamples: int, seed: int = 0, diagnosis: bool = False) -> dict[str, Any]:
    """95 % intervals [low, high] of mAP, AR and, if asked, the summary of the diagnosis; plain numbers.

    {"resamples", "seed", "level", "unit": "video", "num_videos", "mAP": [one per threshold], "average_mAP",
    "AR": {"1": ..}, "AUC", "diagnosis": the keys of its "top"}; of fewer than FEWEST_VIDEOS all are null.
    """
    count, num_videos = len(matched.thresholds), len(matched.data.keys)

    def samples(statistic: Statistic) -> np.ndarray:
        return resample(statistic, num_videos, resamples=resamples, seed=seed)

    def bounds(samples: np.ndarray) -> list[Any]:
        return interval_pairs(percentile_interval(samples), np.full(samples.shape[1], num_videos))

    mean_bounds = bounds(class_means(samples(class_precision(matched)), count))
    recall_bounds = bounds(samples(recall_figures(matched)))
    result: dict[str, Any] = {
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
        "unit": "video",
        "num_videos": num_videos,
        "mAP": mean_bounds[:count],
        "average_mAP": mean_bounds[count],
        "AR": dict(zip(map(str, SHOWN_AN), recall_bounds, strict=False)),
        "AUC": recall_bounds[-1],
    }
    if diagnosis:
        statistic = summary_statistic(matched, detection_kinds(matched))
        result["diagnosis"] = name_summary(bounds(samples(statistic)))
    return result


def interval_pairs(bounds: np.ndarray, num_videos: np.ndarray) -> list[Any]:
    """(2, n) -> [[low, high], ...]; null where there is no number, or fewer than FEWEST_VIDEOS, (n,)."""
    known = np.where(num_videos < FEWEST_VIDEOS, np.nan, bounds)
    return [[None if np.isnan(x) else float(x) for x in column] for column in known.T]


def compare(first: Matches, second: Matches, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """mAP of two sets of detections of the same ground truth, and the intervals of their differences.

    Every resample draws the same videos for both, so what makes a video hard or easy cancels out. Differences
    are first minus second. Returns {"tiou", "resamples", "seed", "level", "rows": [a row of "average", then
    of each threshold: {"tiou", "a", "b", "difference", "interval", "a_better"}], "classes": {name: the same,
    averaged over the thresholds}}; "a_better" is the share of resamples in which the first is better, ties
    counting half. Where fewer than FEWEST_VIDEOS are compared, or have the class, these two are null.
    """
    if first.data.keys != second.data.keys or first.data.labels != second.data.labels:
        raise ValueError("compare: the two were matched with different ground truths, want the same")
    count = len(first.thresholds)
    once = np.ones((1, len(first.data.keys)))
    sides = []
    for matched in (first, second):
        statistic = class_precision(matched)
        samples = resample(statistic, len(first.data.keys), resamples=resamples, seed=seed)
        sides.append(np.concatenate([statistic(once[0])[None], samples]))
    means = [np.roll(class_means(side, count), 1, axis=1) for side in sides]  # the average comes first
    classes = [side.reshape(len(side), -1, count).mean(axis=2) for side in sides]
    rows = _differences(means[0], means[1], np.full(count + 1, len(first.data.keys)))
    true = first.data.true
    annotated = np.unique(np.stack([true.label, true.video]), axis=1)[0]  # (class,) of each in a video
    of_class = np.bincount(annotated, minlength=len(first.data.labels))
    titles = ["average", *(f"{value:g}" for value in first.thresholds)]
    return {
        "tiou": first.thresholds.tolist(),
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
        "rows": [{"tiou": title, **row} for title, row in zip(titles, rows, strict=True)],
        "classes": dict(zip(first.data.labels, _differences(classes[0], classes[1], of_class), strict=True)),
    }


def _differences(a: np.ndarray, b: np.ndarray, num_videos: np.ndarray) -> list[dict[str, Any]]:
    """A row per column of (1 + resamples, n); the first line holds the figures. num_videos: (n,)."""
    gap = a - b
    bounds = interval_pairs(percentile_interval(gap[1:]), num_videos)
    better = np.where(np.isnan(gap[1:]), np.nan, (np.sign(gap[1:]) + 1) / 2)
    share = np.nansum(better, axis=0) / np.maximum((~np.isnan(better)).sum(axis=0), 1)
    return [
        {
            "a": float(a[0, i]),
            "b": float(b[0, i]),
            "difference": float(gap[0, i]),
            "interval": bounds[i],
            "a_better": float(share[i]) if num_videos[i] >= FEWEST_VIDEOS else None,
        }
        for i in range(a.shape[1])
    ]


def too_few(num_videos: int) -> str:
    """Why so many videos give no intervals; empty where they do."""
    if num_videos >= FEWEST_VIDEOS:
        return ""
    return (
        f"no intervals of {counted(num_videos, 'video')}: resampling wants at least {FEWEST_VIDEOS}; cut "
        "long recordings into several videos before they are packed"
    )


def excludes_zero(bounds: Sequence[float | None]) -> bool:
    """Whether zero lies outside an interval."""
    low, high = bounds
    return low is not None and high is not None and (low > 0 or high < 0)
