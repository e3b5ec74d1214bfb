"""Soft-NMS over many rows at once, in numpy on one thread.

Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code", ICCV 2017. Works in any unit
(steps, seconds), in float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

NmsMethod = Literal["gaussian", "linear", "hard"]
_ELEMENTS_AT_ONCE = 65_536  # rows go through in groups of about this many scores: they stay in the cache


@dataclass(frozen=True)
class NmsResult:
    """What soft-NMS kept, best first; M = max_keep. Where `valid` is False entries are padding (zeros)."""

    segments: np.ndarray  # (R, M, 2)
    scores: np.ndarray  # (R, M) decayed scores, not rising
    indices: np.ndarray  # (R, M) int64, position among the P
    valid: np.ndarray  # (R, M) bool


def _as_float(values: np.ndarray) -> np.ndarray:
    """In float32, or unchanged if it already is float32 or float64."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


@dataclass(frozen=True)
class DecayRule:
    """By how much a pick lowers the scores of what it overlaps."""

    method: NmsMethod
    sigma: float
    nms_tiou: float
    min_score: float

    def apply(self, scores: np.ndarray, tiou: np.ndarray) -> None:
        """Lower scores (R, P) in place; tiou (R, P) is overwritten. -inf (picked) stays -inf."""
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


class _RowTiou:
    """tIoU of all segments (R, P, 2) with one of each row, in arrays that are allocated once."""

    def __init__(self, segments: np.ndarray, dtype: np.dtype[Any]):
        self.starts, self.ends = (np.ascontiguousarray(segments[..., side]) for side in (0, 1))
        self.lengths = np.maximum(self.ends - self.starts, 0)
        self.rows, self.tiny = np.arange(len(segments)), np.finfo(dtype).tiny
        self.inter, self.union = np.empty(self.starts.shape, dtype), np.empty(self.starts.shape, dtype)

    def with_each(self, index: np.ndarray) -> np.ndarray:
        """tIoU (R, P) with the segments at `index` (R,); valid until the next call."""
        picked = (self.rows, index, None)
        np.minimum(self.ends, self.ends[picked], out=self.inter)
        np.maximum(self.starts, self.starts[picked], out=self.union)
        self.inter -= self.union
        np.maximum(self.inter, 0, out=self.inter)
        np.add(self.lengths, self.lengths[picked], out=self.union)
        self.union -= self.inter
        np.maximum(self.union, self.tiny, out=self.union)
        self.inter /= self.union
        return self.inter


def _pick(
    segments: np.ndarray, scores: np.ndarray, max_keep: int, rule: DecayRule
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions (R, max_keep) of each row's picks in their order; -inf and 0 after the last."""
    scores = np.where(scores >= rule.min_score, scores, -np.inf).astype(scores.dtype, copy=False)  # no NaN
    picked_scores = np.full((len(scores), max_keep), -np.inf, dtype=scores.dtype)
    indices = np.zeros((len(scores), max_keep), dtype=np.int64)
    rows, overlap = np.arange(len(scores)), _RowTiou(segments, scores.dtype)
    for m in range(min(max_keep, scores.shape[1])):
        index = scores.argmax(axis=1)
        best = scores[rows, index]
        if not (best >= rule.min_score).any():
            break
        picked_scores[:, m], indices[:, m] = best, index
        scores[rows, index] = -np.inf
        rule.apply(scores, overlap.with_each(index))
    return picked_scores, indices


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    *,
    method: NmsMethod = "gaussian",
    sigma: float = 0.35,
    nms_tiou: float = 0.0,
    min_score: float = 1e-4,
    max_keep: int = 100,
) -> NmsResult:
    """Pick the best segment, lower the scores of those that overlap it, repeat; every row on its own.

    segments: (R, P, 2), scores: (R, P); a row is a class of a video. A pick lowers each remaining score whose
    tIoU with it exceeds `nms_tiou`: by exp(-tiou^2 / sigma) ("gaussian"), by 1 - tiou ("linear"), to nothing
    ("hard"). A row ends when its best score is below `min_score` or `max_keep` are picked. Equal scores: the
    lower index goes first. sigma and max_keep are positive. ValueError for shapes that do not fit.
    """
    segments, scores = _as_float(segments), _as_float(scores)
    if scores.ndim != 2 or segments.shape != (*scores.shape, 2):
        raise ValueError(
            f"soft_nms: segments {segments.shape} and scores {scores.shape}, want (R, P, 2) and (R, P)"
        )
    num_rows, num_segments = scores.shape
    picked_scores = np.full((num_rows, max_keep), -np.inf, dtype=scores.dtype)
    indices = np.zeros((num_rows, max_keep), dtype=np.int64)
    if not num_segments:
        no_segments, no_scores = np.zeros((num_rows, max_keep, 2)), np.zeros((num_rows, max_keep))
        return NmsResult(no_segments, no_scores, indices, indices > 0)
    rule = DecayRule(method, sigma, nms_tiou, min_score)
    group = max(1, _ELEMENTS_AT_ONCE // num_segments)
    for i in range(0, num_rows, group):
        rows = slice(i, i + group)
        picked_scores[rows], indices[rows] = _pick(segments[rows], scores[rows], max_keep, rule)
    valid = picked_scores >= min_score  # scores only fall: what is below the limit when picked ends its row
    chosen = np.take_along_axis(segments, indices[..., None], axis=1)
    return NmsResult(np.where(valid[..., None], chosen, 0), np.where(valid, picked_scores, 0), indices, valid)
