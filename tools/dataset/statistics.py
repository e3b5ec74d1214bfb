"""Statistics of a packed data set: counts, lengths, classes, formats. Pure functions of a Dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.records import PackedVideo
from tools.dataset.decoding import decoding_of

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def statistics_of(dataset: Dataset) -> dict[str, Any]:
    """Everything that `leantad inspect` shows of the data, as plain JSON values.

    Lengths are of packed videos, which training reads; rejected ones are counted and listed. Seconds, frames
    per second, pixels; shares are fractions.
    """
    videos = [video for _, video in sorted(dataset.videos.items())]
    packed = [video for video in videos if video.reject is None]
    actions = [(action, video) for video in packed for action in video.actions]
    return {
        "classes": len(dataset.classes),
        "packing": dataset.packing,
        "subsets": {name: counts_of(videos, name) for name in sorted({video.subset for video in videos})},
        "duration_seconds": percentiles(video.duration or 0.0 for video in packed),
        "duration_histogram": histogram([video.duration or 0.0 for video in packed]),
        "fps": tally(f"{video.fps:.6g}" for video in packed),
        "sizes": tally(f"{video.width}x{video.height}" for video in packed),
        "codecs": tally(video.codec for video in packed),
        "decoding": decoding_of(packed),
        "action_seconds": percentiles(action.end - action.start for action, _ in actions),
        "action_histogram": histogram([action.end - action.start for action, _ in actions]),
        "action_share_of_video": percentiles(
            (action.end - action.start) / (video.duration or 1.0) for action, video in actions
        ),
        "actions_per_video": percentiles(len(video.actions) for video in packed),
        "overlaps": overlaps_of(packed),
        "balance": balance_of(dataset),
        "repairs": [vars(repair) for repair in dataset.repairs],
        "rejects": [
            {"video": video.source, "subset": video.subset, "reason": video.reject}
            for video in videos
            if video.reject is not None
        ],
    }


def counts_of(videos: Sequence[PackedVideo], subset: str) -> dict[str, Any]:
    """One row of the table of subsets. Hours and frames are of the packed videos."""
    selected = [video for video in videos if video.subset == subset]
    packed = [video for video in selected if video.reject is None]
    return {
        "videos": len(selected),
        "packed": len(packed),
        "rejected": len(selected) - len(packed),
        "hours": round(sum(video.duration or 0.0 for video in packed) / 3600, 4),
        "frames": sum(video.num_frames for video in packed),
        "actions": sum(len(video.actions) for video in packed),
        "without_actions": sum(not video.actions for video in packed),
    }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """{"p0": smallest, ..., "p50": median, ..., "p100": largest}; empty without values."""
    array = np.array(list(values), dtype=np.float64)
    if not array.size:
        return {}
    quantiles = np.percentile(array, PERCENTILES)
    return {f"p{p}": round(float(value), 4) for p, value in zip(PERCENTILES, quantiles, strict=True)}


def histogram(values: Sequence[float], bins: int = 10) -> dict[str, list[float]]:
    """Counts in `bins` bins whose widths grow by a constant factor: lengths spread over decades.

    Returns {"edges": bins + 1 values, "counts": bins}; one bin if all values are (nearly) equal.
    """
    array = np.array(values, dtype=np.float64)
    array = array[array > 0]
    if not array.size:
        return {"edges": [], "counts": []}
    low, high = float(array.min()), float(array.max())
    if high <= low * 1.01:
        return {"edges": [low, high], "counts": [len(array)]}
    edges = np.geomspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # rounding must not push the extremes out
    counts, _ = np.histogram(array, edges)
    return {"edges": [float(f"{edge:.4g}") for edge in edges], "counts": [int(count) for count in counts]}


def tally(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(Counter(values).most_common())


def overlaps_of(videos: Sequence[PackedVideo]) -> dict[str, int]:
    """Pairs of actions of one video that overlap in time: of one class, and of two."""
    same = different = num_actions = 0
    for video in videos:
        labels = np.array([action.label for action in video.actions])
        pairs = overlapping(np.array([(action.start, action.end) for action in video.actions]))
        same_label = int((labels[pairs[:, 0]] == labels[pairs[:, 1]]).sum()) if len(pairs) else 0
        same, different = same + same_label, different + len(pairs) - same_label
        num_actions += len(np.unique(pairs))
    return {"pairs_same_class": same, "pairs_other_class": different, "actions": num_actions}


def overlapping(segments: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs of indices (i, j), i < j, of segments (A, 2) that share more than a point: (P, 2)."""
    if len(segments) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    start, end = segments.T
    overlap = np.minimum(end[:, None], end) > np.maximum(start[:, None], start)
    return np.argwhere(np.triu(overlap, 1))


def actions_per_class(classes: Iterable[str], videos: Iterable[PackedVideo]) -> dict[str, dict[str, int]]:
    """{class: {subset: number of actions}}, both by name; subsets without an action are left out."""
    counts: dict[str, Counter[str]] = {label: Counter() for label in sorted(classes)}
    for video in videos:
        for action in video.actions:
            counts[action.label][video.subset] += 1
    return {label: dict(sorted(by_subset.items())) for label, by_subset in counts.items()}


def balance_of(dataset: Dataset) -> dict[str, Any]:
    """Actions of packed videos per class and subset: rare classes, and those that only one subset has.

    ratio: the commonest class's count over the rarest's, among those that occur.
    """
    packed = [video for video in dataset.videos.values() if video.reject is None]
    counts = actions_per_class(dataset.classes, packed)
    total = {label: sum(by_subset.values()) for label, by_subset in counts.items()}
    present = sorted((count, label) for label, count in total.items() if count)
    subsets = {subset for by_subset in counts.values() for subset in by_subset}
    of_one_subset = [label for label in counts if len(counts[label]) == 1 < len(subsets)]
    return {
        "per_class": counts,
        "ratio": round(present[-1][0] / present[0][0], 2) if present else None,
        "rarest": {label: count for count, label in present[:10]},
        "commonest": {label: count for count, label in present[:-6:-1]},
        "without_actions": [label for label in sorted(total) if not total[label]],
        "in_one_subset": {label: next(iter(counts[label])) for label in of_one_subset},
    }
