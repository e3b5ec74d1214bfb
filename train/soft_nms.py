"""Soft-NMS within each label of a video, in numpy on one thread.

Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code", ICCV 2017. Works in any unit
(steps, seconds), in float32 or wider. A label is picked from only while its best is among those of all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NmsMethod = Literal["gaussian", "linear", "hard"]


def _as_float(values: np.ndarray) -> np.ndarray:
    """In float32, or unchanged if it already is float32 or float64."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


@dataclass(frozen=True)
class DecayRule:
    """By how much a pick lowers the scores of what it overlaps."""

    method: NmsMethod
    sigma: float
    nms_tiou: float

    def apply(self, scores: np.ndarray, tiou: np.ndarray) -> None:
        """Lower scores (P,) in place; tiou (P,) is overwritten. -inf (picked) stays -inf."""
        if self.method == "hard":
            np.putmask(scores, tiou > self.nms_tiou, -np.inf)
            return
        if self.nms_tiou > 0:
            np.putmask(tiou, tiou <= self.nms_tiou, 0)
        if self.method == "gaussian":
            tiou *= tiou
            tiou *= -1 / self.sigma
            np.exp(tiou, out=tiou)
        else:
            np.subtract(1, tiou, out=tiou)
        # a factor of 0 would turn -inf into nan; so small a factor kills every score anyway
        np.maximum(tiou, np.finfo(tiou.dtype).tiny, out=tiou)
        scores *= tiou


class _Label:
    """What is left of a label's P segments; -inf: picked, or too low from the start."""

    def __init__(self, segments: np.ndarray, scores: np.ndarray, rule: DecayRule):
        self.scores, self.rule = scores, rule
        self.starts, self.ends = np.ascontiguousarray(segments.T)
        self.lengths, self.tiny = np.maximum(self.ends - self.starts, 0), np.finfo(scores.dtype).tiny
        self.inter, self.union = np.empty_like(self.scores), np.empty_like(self.scores)
        self.best = int(self.scores.argmax())

    def score(self) -> float:
        """Of the best that is left; -inf if none is."""
        return float(self.scores[self.best])

    def pick(self) -> None:
        """Take the best, and lower the scores of what it overlaps."""
        overlap = self._tiou_with_best()
        self.scores[self.best] = -np.inf
        self.rule.apply(self.scores, overlap)
        self.best = int(self.scores.argmax())

    def _tiou_with_best(self) -> np.ndarray:
        """(P,); valid until the next call."""
        np.minimum(self.ends, self.ends[self.best], out=self.inter)
        np.maximum(self.starts, self.starts[self.best], out=self.union)
        self.inter -= self.union
        np.maximum(self.inter, 0, out=self.inter)
        np.add(self.lengths, self.lengths[self.best], out=self.union)
        self.union -= self.inter
        np.maximum(self.union, self.tiny, out=self.union)
        self.inter /= self.union
        return self.inter


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    method: NmsMethod = "gaussian",
    sigma: float = 0.35,
    nms_tiou: float = 0.0,
    min_score: float = 1e-4,
    max_keep: int = 100,
) -> tuple[NDArray[np.int64], np.ndarray]:
    """Within each label pick the best segment, lower the scores of those that overlap it, repeat.

    segments: (P, 2), scores: (P,), labels: (P,) whole numbers. A pick lowers each remaining score of its
    label whose tIoU with it exceeds `nms_tiou`: by exp(-tiou^2 / sigma) ("gaussian"), by 1 - tiou ("linear"),
    to nothing ("hard"). Returns the best `max_keep` picks of all labels, best first: their indices and
    lowered scores, (M,) each, none below `min_score`. Equal scores: the smaller label goes first, in it the
    lower index. sigma and max_keep are positive. ValueError for shapes that do not fit.
    """
    segments, scores = _as_float(segments), _as_float(scores)
    if scores.ndim != 1 or segments.shape != (*scores.shape, 2) or labels.shape != scores.shape:
        raise ValueError(
            f"soft_nms: segments {segments.shape}, scores {scores.shape} and labels {labels.shape}, want "
            "(P, 2), (P,) and (P,)"
        )
    indices, picked = list[int](), list[float]()
    if not len(scores):
        return np.array(indices, dtype=np.int64), np.array(picked, dtype=scores.dtype)
    rule, order = DecayRule(method, sigma, nms_tiou), np.argsort(labels, kind="stable")
    begins = np.append(0, np.flatnonzero(np.diff(labels[order])) + 1)
    rows_of = np.split(order, begins[1:])
    # no NaN
    scores = np.where(scores >= min_score, scores, -np.inf).astype(scores.dtype, copy=False)
    bests = np.maximum.reduceat(scores[order], begins)
    heap = [(-best, number) for number, best in enumerate(bests.tolist())]
    heapq.heapify(heap)
    left: dict[int, _Label] = {}  # most labels are never the best
    # a score only falls: once the best of all is below the limit, so is what remains
    while len(indices) < max_keep and -heap[0][0] >= min_score:
        number = heap[0][1]
        rows = rows_of[number]
        if number not in left:
            left[number] = _Label(segments[rows], scores[rows], rule)
        label = left[number]
        indices.append(rows[label.best])
        picked.append(label.scores[label.best])
        label.pick()
        heapq.heapreplace(heap, (-label.score(), number))
    return np.array(indices, dtype=np.int64), np.array(picked, dtype=scores.dtype)
