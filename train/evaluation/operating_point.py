"""The operating point: the score threshold with the best F1 at tIoU 0.5, and which detections are right.

A detection is a hit when the protocol matches it with a true action at tIoU 0.5: in the order of score, each
true action once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.annotations import Video
from train.detections import Results
from train.evaluation.matching import SegmentTable, detection_table, ground_truth_table, match_labels

TIOU = 0.5


@dataclass(frozen=True)
class MatchedDetections:
    """All true actions and detections; hit (n,): whether a detection takes a true action.

    The columns `video` are positions in `keys`, the columns `label` in `labels`.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    true: SegmentTable
    detected: SegmentTable
    hit: np.ndarray

    @property
    def top_score(self) -> float:
        """The highest score of all, 1 where there is none."""
        return float(self.detected.scores.max(initial=0.0)) or 1.0


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which detections count as an answer, where F1 over all videos is best.

    hits, answers: detections of this score or a higher one that are right, and all of them.
    """

    score: float
    hits: int
    answers: int
    num_true: int

    @property
    def precision(self) -> float:
        """Which part of the answers is right; 0 without any."""
        return self.hits / max(self.answers, 1)

    @property
    def recall(self) -> float:
        """Which part of the true actions is found; 0 without any."""
        return self.hits / max(self.num_true, 1)

    @property
    def cut(self) -> float:
        """The score from which detections are drawn as answers: all of them where none is right."""
        return self.score if self.hits else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing is right."""
        return 2 * self.hits / max(self.answers + self.num_true, 1)


def matched_detections(ground_truth: Mapping[str, Video], detections: Results) -> MatchedDetections:
    """Match all detections with the true actions at tIoU 0.5; those of unknown videos are no hits."""
    keys = tuple(ground_truth)
    names = {action.label for video in ground_truth.values() for action in video.actions}
    names |= {entry["label"] for entries in detections.values() for entry in entries}
    labels = tuple(sorted(names))
    index = {name: number for number, name in enumerate(labels)}
    true = ground_truth_table(ground_truth, index, drop_duplicates=False)
    detected = detection_table(detections, {key: number for number, key in enumerate(keys)}, index)
    hit = np.zeros(len(detected.scores), dtype=bool)
    order = np.lexsort((-detected.scores, detected.label))
    hit[order] = match_labels(detected.take(order), true, np.array([TIOU]), len(keys))[0] >= 0
    return MatchedDetections(keys, labels, true, detected, hit)


def operating_point(matched: MatchedDetections) -> OperatingPoint:
    """Where F1 is best, the highest of equals; a score above every detection if nothing is ever right.

    Equal scores count together: no threshold tells them apart.
    """
    num_true = len(matched.true.label)
    order = np.argsort(-matched.detected.scores, kind="stable")
    scores, hits = matched.detected.scores[order], matched.hit[order].cumsum()
    if not len(hits) or not hits[-1]:
        return OperatingPoint(float("inf"), 0, 0, num_true)
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each score
    best = int(last[np.argmax(2 * hits[last] / (last + 1 + num_true))])
    return OperatingPoint(float(scores[best]), int(hits[best]), best + 1, num_true)


def precision_recall(matched: MatchedDetections) -> list[tuple[float, float]]:
    """About 300 points (recall, precision) in percent, all classes together, interpolated as AP does."""
    hits = matched.hit[np.argsort(-matched.detected.scores, kind="stable")].cumsum()
    if not len(hits):
        return []
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    positions = np.unique(np.geomspace(1, len(hits), 300).round().astype(int)) - 1
    recall = hits[positions] / max(len(matched.true.label), 1)
    return list(zip((100 * recall).tolist(), (100 * precision[positions]).tolist(), strict=True))


def video_scores(matched: MatchedDetections, point: OperatingPoint) -> np.ndarray:
    """F1 of each video at the operating point; NaN for a video without true actions."""
    shown = (matched.detected.scores >= point.score) & (matched.detected.video >= 0)
    count = len(matched.keys)
    hits = np.bincount(matched.detected.video[shown & matched.hit], minlength=count)
    answers = np.bincount(matched.detected.video[shown], minlength=count)
    true = np.bincount(matched.true.video, minlength=count)
    return np.where(true > 0, 2 * hits / np.maximum(answers + true, 1), np.nan)
