"""Segment voting: a detection's ends become the mean of those of all candidates that overlap it enough.

As OpenTAD and ActionFormer do it, after box voting (Gidaris and Komodakis, ICCV 2015): a candidate weighs
its score before suppression times its tIoU with the detection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WEIGHTS_AT_ONCE = 1 << 20  # detections x candidates in memory at a time


def vote(
    detections: np.ndarray, candidates: np.ndarray, scores: np.ndarray, *, voting_tiou: float
) -> NDArray[np.float64]:
    """The detections (M, 2), moved. candidates: (P, 2), scores: (P,), of the same class, in the same unit.

    A candidate has a vote from a tIoU of `voting_tiou` on. What nothing overlaps so much stays.
    """
    moved: NDArray[np.float64] = detections.astype(np.float64)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, len(candidates)))
    for first in range(0, len(detections), at_once):
        rows = slice(first, first + at_once)
        tiou = _pairwise_tiou(detections[rows], candidates)
        weights = (tiou >= voting_tiou) * tiou * scores
        total = weights.sum(1, keepdims=True)
        means = weights @ candidates / np.where(total > 0, total, 1)
        moved[rows] = np.where(total > 0, means, moved[rows])
    return moved


def _pairwise_tiou(first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """(M, 2) and (P, 2) -> (M, P) in float64; 0 where neither has a length."""
    first, second = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    inter = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    inter = np.maximum(inter, 0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - inter
    ratio: NDArray[np.float64] = inter / np.maximum(union, np.finfo(np.float64).tiny)
    return ratio
