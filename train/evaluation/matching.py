"""True actions and detections as arrays, and the official matching of the two, all classes at once.

Per class, the detections of all videos are sorted by score; each takes, per tIoU threshold, the untaken true
action of its video with the highest tIoU at or above the threshold, or is a false positive.

The official loop takes detections one by one. Here all of them bid at once: each for its best true action,
which keeps the bidder with the highest score; the others bid for their next one, until nobody has to move
(Gale and Shapley's deferred acceptance). As every true action ranks the bidders alike, by score, there is one
stable matching: the loop's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from pipeline.annotations import Action, Video
from pipeline.duplicates import SeenActions
from train.detections import Results, checked_results

# --- from dictionaries to arrays --------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentTable:
    """True actions or detections, a row each: video (n,), label (n,), segments (n, 2) in seconds, scores
    (n,)."""

    video: np.ndarray
    label: np.ndarray
    segments: np.ndarray
    scores: np.ndarray

    def take(self, index: np.ndarray) -> SegmentTable:
        return SegmentTable(self.video[index], self.label[index], self.segments[index], self.scores[index])


def ground_truth_table(
    ground_truth: Mapping[str, Video], labels: Mapping[str, int], *, drop_duplicates: bool
) -> SegmentTable:
    """The true actions of all videos in file order; scores are zero.

    With `drop_duplicates`, an action whose label and both ends (within 1 ms) repeat an earlier one of its
    video goes, and so does one without length, as OpenTAD and ActionFormer do; the official protocol keeps
    both.
    """
    video, label, segments = [], [], []
    for index, item in enumerate(ground_truth.values()):
        kept = _distinct(item.actions) if drop_duplicates else item.actions
        video += [index] * len(kept)
        label += [labels[action.label] for action in kept]
        segments += [(action.start, action.end) for action in kept]
    return _table(video, label, segments, np.zeros(len(video)))


def _distinct(actions: Iterable[Action]) -> list[Action]:
    """Those with a length that repeat none kept before."""
    kept, seen = [], SeenActions()
    for action in actions:
        if action.end > action.start and not seen.has(action):
            kept.append(action)
            seen.add(action)
    return kept


def _table(video: Any, label: Any, segments: Any, scores: Any) -> SegmentTable:
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    return SegmentTable(
        np.asarray(video, np.int64), np.asarray(label, np.int64), segments, np.asarray(scores, np.float64)
    )


def detection_table(
    detections: Results, videos: Mapping[str, int], labels: Mapping[str, int]
) -> SegmentTable:
    """The detections in file order; video or label -1 where the ground truth does not know it.

    ValueError naming video and entry for a missing field, a segment that is not two numbers, or a value that
    is not finite. A segment that ends before it starts is kept: it overlaps nothing.
    """
    video = np.repeat(
        np.array([videos.get(key, -1) for key in detections], dtype=np.int64),
        [len(entries) for entries in detections.values()],
    )
    entries = list(chain.from_iterable(detections.values()))
    try:
        label = [labels.get(entry["label"], -1) for entry in entries]
        table = _table(
            video, label, [entry["segment"] for entry in entries], [entry["score"] for entry in entries]
        )
        sound = (
            len(table.segments) == len(entries)
            and np.isfinite(table.segments).all()
            and np.isfinite(table.scores).all()
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        checked_results(detections, where="")  # names the first that is unsound
        raise ValueError("detections: a segment, label or score cannot be read")
    return table


# --- matching ---------------------------------------------------------------------------------------------


def overlapping_pairs(
    detected: SegmentTable, true: SegmentTable, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All (detection, true action, tIoU) of the same video with tIoU >= `least`.

    Three arrays (pairs,), by detection, then by falling tIoU; of equal tIoU the later true action comes
    first, as in the official code.
    """
    by_video = np.argsort(true.video, kind="stable")
    first = np.searchsorted(true.video[by_video], detected.video, "left")
    count = np.searchsorted(true.video[by_video], detected.video, "right") - first
    detection = np.repeat(np.arange(len(count)), count)
    nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    action = by_video[np.repeat(first, count) + nth]
    tiou = pair_tiou(detected.segments[detection], true.segments[action])
    near = np.flatnonzero(tiou >= least)
    detection, action, tiou = detection[near], action[near], tiou[near]
    order = np.lexsort((-action, -tiou, detection))
    return detection[order], action[order], tiou[order]


def pair_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, (n, 2) and (n, 2) -> (n,); 0 where the union has no length."""
    inside = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0)
    union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - inside
    tiou: np.ndarray = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return tiou


def match(detected: SegmentTable, true: SegmentTable, thresholds: np.ndarray) -> np.ndarray:
    """The true action that each detection takes, per threshold: (thresholds, n) row numbers, -1 for none.

    `detected` is sorted by falling score. Labels are ignored; `match_labels` keeps them apart.
    """
    detection, action, tiou = overlapping_pairs(detected, true, thresholds[0])
    num_levels, num_detections, num_true = len(thresholds), len(detected.scores), len(true.scores)
    level, pair = np.nonzero(tiou >= thresholds[:, None])
    options = np.bincount(level * num_detections + detection[pair], minlength=num_levels * num_detections)
    begin = np.searchsorted(detection, np.arange(num_detections))

    level, bidder = np.divmod(np.flatnonzero(options), num_detections)
    # the pair each bidder is at; at a threshold it may go through the first of its list
    cursor = begin[bidder]
    end = cursor + options[options > 0]
    holder = np.empty(num_levels * num_true, dtype=np.int64)
    while len(bidder):
        slot = level * num_true + action[cursor]
        holder.fill(num_detections)
        np.minimum.at(holder, slot, bidder)
        outbid = holder[slot] != bidder
        if not outbid.any():
            break
        cursor = cursor + outbid
        alive = cursor < end
        level, bidder, cursor, end = level[alive], bidder[alive], cursor[alive], end[alive]
    taken = np.full((num_levels, num_detections), -1, dtype=np.int64)
    taken[level, bidder] = action[cursor]
    return taken


def match_labels(
    detected: SegmentTable, true: SegmentTable, thresholds: np.ndarray, num_videos: int
) -> np.ndarray:
    """`match` for all labels at once: a detection takes only true actions of its own label.

    `detected` is sorted by falling score within each label; its videos may be -1 (unknown), its labels not.
    """
    groups = num_videos + 1
    detected = replace(detected, video=detected.label * groups + detected.video + 1)
    return match(detected, replace(true, video=true.label * groups + true.video + 1), thresholds)


@dataclass(frozen=True)
class EvaluationData:
    """Ground truth and detections as arrays, both in file order.

    The columns `video` are positions in `keys`, the columns `label` in `labels`, the classes with a true
    action. A detection's video or label is -1 where the ground truth has none such.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    true: SegmentTable
    detected: SegmentTable


def evaluation_data(
    ground_truth: Mapping[str, Video], detections: Results, *, drop_duplicates: bool = False
) -> EvaluationData:
    """Both sides of an evaluation as arrays; ValueError without any action, or for a bad detection."""
    names = sorted({action.label for video in ground_truth.values() for action in video.actions})
    labels = {name: index for index, name in enumerate(names)}
    true = ground_truth_table(ground_truth, labels, drop_duplicates=drop_duplicates)
    if not len(true.scores):
        raise ValueError(
            f"ground truth: {len(ground_truth)} videos without a single action, want at least one action"
        )
    present, numbers = np.unique(true.label, return_inverse=True)  # dropping may leave a class with nothing
    labels = {names[old]: new for new, old in enumerate(present.tolist())}
    detected = detection_table(detections, {key: index for index, key in enumerate(ground_truth)}, labels)
    return EvaluationData(tuple(ground_truth), tuple(labels), replace(true, label=numbers), detected)


@dataclass(frozen=True)
class Matches:
    """What every measure of detections starts from.

    detected: those of a class with true actions, by class, then by falling score (equal scores: file order).
    action: (thresholds, n) the row of `data.true` each takes, -1 for none.
    """

    data: EvaluationData
    thresholds: np.ndarray
    detected: SegmentTable
    action: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """Which detections are true positives, (thresholds, n)."""
        return self.action >= 0

    @property
    def num_true(self) -> np.ndarray:
        """True actions of each class, (K,)."""
        return np.bincount(self.data.true.label, minlength=len(self.data.labels))

    @property
    def class_offsets(self) -> np.ndarray:
        """The row at which each class begins in `detected`, and the number of rows: (K + 1,)."""
        return np.searchsorted(self.detected.label, np.arange(len(self.data.labels) + 1))


def match_detections(data: EvaluationData, thresholds: np.ndarray) -> Matches:
    """Match all classes at all thresholds."""
    order = np.lexsort((-data.detected.scores, data.detected.label))
    detected = data.detected.take(order[np.searchsorted(data.detected.label[order], 0) :])
    return Matches(data, thresholds, detected, match_labels(detected, data.true, thresholds, len(data.keys)))
