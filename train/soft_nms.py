"""Soft-NMS over many rows at once, in numpy on one thread.

Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code", ICCV 2017. Works in any unit
(steps, seconds), in float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NMS_METHODS = ("gaussian", "linear", "hard")
_ELEMENTS_AT_ONCE = 65_536  # rows are walked in groups of about this many scores: they stay in the cache


@dataclass(frozen=True)
class Kept:
    """What soft-NMS kept, best first; M = max_keep. Where `valid` is False entries are padding (zeros)."""

    segments: np.ndarray  # (R, M, 2)
    scores: np.ndarray  # (R, M) decayed scores, not rising
    indices: np.ndarray  # (R, M) int64, position among the P
    valid: np.ndarray  # (R, M) bool


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    *,
    method: str = "gaussian",
    sigma: float = 0.35,
    nms_tiou: float = 0.0,
    min_score: float = 1e-4,
    max_keep: int = 100,
) -> Kept:
    """Pick the best segment, lower the scores of those that overlap it, repeat; every row on its own.

    segments: (R, P, 2), scores: (R, P); a row is a class of a video. A pick lowers each remaining score whose
    tIoU with it exceeds `nms_tiou`: by exp(-tiou^2 / sigma) ("gaussian"), by 1 - tiou ("linear"), to nothing
    ("hard"). A row ends when its best score is below `min_score` or `max_keep` are picked. Equal scores: the
    lower index goes first. Raises ValueError for shapes that do not fit and rules that make no sense.
    """
    segments, scores = _wide(segments), _wide(scores)
    _check_nms(segments, scores, method=method, sigma=sigma, max_keep=max_keep)
    rule = DecayRule(method, sigma, nms_tiou, min_score)
    picked_scores, picked = _pick_all(segments, scores, max_keep, rule)
    valid = picked_scores > -np.inf
    if not scores.shape[1]:
        return Kept(np.zeros((len(scores), max_keep, 2), segments.dtype), valid * 0.0, picked, valid)
    chosen = np.take_along_axis(segments, picked[..., None], axis=1)
    return Kept(np.where(valid[..., None], chosen, 0), np.where(valid, picked_scores, 0), picked, valid)


def _wide(values: np.ndarray) -> np.ndarray:
    """In float32, or unchanged if it already is float32 or float64."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _check_nms(segments: np.ndarray, scores: np.ndarray, *, method: str, sigma: float, max_keep: int) -> None:
    if method not in NMS_METHODS:
        raise ValueError(f"soft_nms: method {method!r}, want one of {', '.join(NMS_METHODS)}")
    if scores.ndim != 2 or segments.shape != (*scores.shape, 2):
        raise ValueError(
            f"soft_nms: segments {segments.shape} and scores {scores.shape}, want (R, P, 2) and (R, P)"
        )
    if sigma <= 0 or max_keep < 1:
        raise ValueError(f"soft_nms: sigma {sigma} and max_keep {max_keep}, want both positive")


@dataclass(frozen=True)
class DecayRule:
    """By how much a pick lowers the scores of what it overlaps."""

    method: str
    sigma: float
    nms_tiou: float
    min_score: float

    def apply(self, scores: np.ndarray, tiou: np.ndarray) -> None:
        """Lower scores (R, P) in place; tiou (R, P) is used up. -inf (picked) stays -inf."""
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


def _pick_all(
    segments: np.ndarray, scores: np.ndarray, keep: int, rule: DecayRule
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS of (R, P) rows in groups: picked scores (R, keep), -inf where there is none; their places."""
    picked_scores = np.full((len(scores), keep), -np.inf, dtype=scores.dtype)
    picked = np.zeros((len(scores), keep), dtype=np.int64)
    group = max(1, _ELEMENTS_AT_ONCE // max(1, scores.shape[1]))
    for i in range(0, len(scores) if scores.shape[1] else 0, group):
        part = slice(i, i + group)
        alive = np.where(scores[part] >= rule.min_score, scores[part], -np.inf)  # a NaN is never picked
        _pick_rows(
            segments[part], alive.astype(scores.dtype, copy=False), picked_scores[part], picked[part], rule
        )
    # scores only fall, so what is below the limit when it is picked ends its row
    picked_scores[~(picked_scores >= rule.min_score)] = -np.inf
    return picked_scores, picked


def _pick_rows(
    segments: np.ndarray, scores: np.ndarray, picked_scores: np.ndarray, picked: np.ndarray, rule: DecayRule
) -> None:
    """The loop of soft-NMS on a group of rows: fills picked_scores and picked (R, M), eats scores (R, P)."""
    starts, ends = np.ascontiguousarray(segments[..., 0]), np.ascontiguousarray(segments[..., 1])
    lengths = np.maximum(ends - starts, 0)
    tiny, rows = np.finfo(scores.dtype).tiny, np.arange(len(scores))
    inter, union = np.empty_like(scores), np.empty_like(scores)
    for m in range(min(picked.shape[1], scores.shape[1])):
        index = scores.argmax(axis=1)
        best = scores[rows, index]
        if not (best >= rule.min_score).any():
            return
        picked_scores[:, m] = best
        picked[:, m] = index
        scores[rows, index] = -np.inf
        np.minimum(ends, ends[rows, index, None], out=inter)
        np.maximum(starts, starts[rows, index, None], out=union)
        inter -= union
        np.maximum(inter, 0, out=inter)
        np.add(lengths, lengths[rows, index, None], out=union)
        union -= inter
        np.maximum(union, tiny, out=union)
        inter /= union
        rule.apply(scores, inter)
