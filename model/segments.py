"""Pure functions of 1-D segments: temporal IoU, conversions between forms, soft-NMS over many rows at once.

Soft-NMS: Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code", ICCV 2017.
Every function works in any unit (steps, seconds) and computes in float32 or wider.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NMS_METHODS = ("gaussian", "linear", "hard")
_ELEMENTS_AT_ONCE = (
    65_536  # rows are walked in groups of about this many scores, so that they stay in the cache
)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it already is float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def pairwise_tiou(first: Tensor, second: Tensor) -> Tensor:
    """Temporal intersection over union of every pair.

    first: (..., P, 2), second: (..., A, 2) start and end, leading dims broadcast. Returns (..., P, A) in
    [0, 1], float32 or wider. A segment of no length (or one that ends before it starts) has tIoU 0 with
    everything.
    """
    first, second = wide(first), wide(second)
    start1, end1 = first[..., :, None, 0], first[..., :, None, 1]
    start2, end2 = second[..., None, :, 0], second[..., None, :, 1]
    inter = (torch.minimum(end1, end2) - torch.maximum(start1, start2)).clamp(min=0)
    union = (end1 - start1).clamp(min=0) + (end2 - start2).clamp(min=0) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def to_centre_width(segments: Tensor) -> Tensor:
    """(..., 2) start and end -> (..., 2) centre and width."""
    start, end = segments.unbind(-1)
    return torch.stack([(start + end) / 2, end - start], -1)


def from_centre_width(centre_width: Tensor) -> Tensor:
    """(..., 2) centre and width -> (..., 2) start and end."""
    centre, width = centre_width.unbind(-1)
    return torch.stack([centre - width / 2, centre + width / 2], -1)


def clamp_segments(segments: Tensor, *, limit: float, min_width: float) -> Tensor:
    """Move segments into [0, limit], at least `min_width` long (grown around their centre, then shifted
    inside).

    segments: (..., 2) start and end, in any order of the two. Returns (..., 2); min_width must not exceed
    limit.
    """
    segments = segments.clamp(0, limit)
    start, end = torch.minimum(segments[..., 0], segments[..., 1]), segments.amax(-1)
    missing = (min_width - (end - start)).clamp(min=0)
    start = (start - missing / 2).clamp(min=0)
    start = torch.minimum(start, limit - min_width + torch.zeros_like(start))
    return torch.stack([start, torch.maximum(end, start + min_width)], -1)


@dataclass(frozen=True)
class Kept:
    """What soft-NMS kept, best first; M = max_keep. Entries where `valid` is False are padding (zeros,
    index 0)."""

    segments: Tensor  # (..., M, 2)
    scores: Tensor  # (..., M) decayed scores, not rising
    indices: Tensor  # (..., M) int64, position among the P
    valid: Tensor  # (..., M) bool


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    method: str = "gaussian",
    sigma: float = 0.35,
    threshold: float = 0.0,
    min_score: float = 1e-4,
    max_keep: int = 100,
) -> Kept:
    """Pick the best segment, lower the scores of those that overlap it, repeat; every row on its own.

    segments: (..., P, 2), scores: (..., P); leading dims (videos, classes) broadcast, so (V, 1, P, 2) goes
    with (V, K, P). A pick lowers each remaining score whose tIoU with it exceeds `threshold`: by
    exp(-tiou^2 / sigma) ("gaussian"), by 1 - tiou ("linear"), to nothing ("hard"). A row ends when its best
    score is below `min_score` or `max_keep` are picked. Equal scores: the lower index goes first.
    """
    _check_nms(segments, scores, method=method, sigma=sigma, max_keep=max_keep)
    lead = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        segments.shape[:-2], scores.shape[:-1]
    )
    count = scores.shape[-1]
    total = math.prod(lead)
    segments = wide(segments).expand(*lead, count, 2).reshape(total, count, 2)
    scores = wide(scores).expand(*lead, count).reshape(total, count)
    rule = DecayRule(method, sigma, threshold, min_score)
    found, places = _pick_all(
        segments.detach().cpu().numpy(), scores.detach().cpu().numpy(), min(max_keep, count), rule
    )
    picked_scores = scores.new_full((total, max_keep), -torch.inf)
    picked = torch.zeros(total, max_keep, dtype=torch.int64, device=scores.device)
    picked_scores[:, : found.shape[1]] = torch.from_numpy(found)
    picked[:, : found.shape[1]] = torch.from_numpy(places)
    valid = picked_scores > -torch.inf
    picked = picked.masked_fill_(~valid, 0)
    if count:
        chosen = segments.gather(1, picked[..., None].expand(-1, -1, 2)).masked_fill_(~valid[..., None], 0)
    else:
        chosen = segments.new_zeros(len(segments), max_keep, 2)
    return Kept(
        chosen.reshape(*lead, max_keep, 2),
        picked_scores.masked_fill_(~valid, 0).reshape(*lead, max_keep),
        picked.reshape(*lead, max_keep),
        valid.reshape(*lead, max_keep),
    )


def _check_nms(segments: Tensor, scores: Tensor, *, method: str, sigma: float, max_keep: int) -> None:
    if method not in NMS_METHODS:
        raise ValueError(f"soft_nms: method {method!r}, want one of {', '.join(NMS_METHODS)}")
    if segments.shape[-1:] != (2,) or segments.shape[-2:-1] != scores.shape[-1:]:
        raise ValueError(
            f"soft_nms: segments {tuple(segments.shape)} and scores {tuple(scores.shape)}, "
            "want (..., P, 2) and (..., P)"
        )
    if sigma <= 0 or max_keep < 1:
        raise ValueError(f"soft_nms: sigma {sigma} and max_keep {max_keep}, want both positive")


@dataclass(frozen=True)
class DecayRule:
    """By how much a pick lowers the scores of what it overlaps."""

    method: str
    sigma: float
    threshold: float
    min_score: float

    def apply(self, scores: np.ndarray, tiou: np.ndarray) -> None:
        """Lower scores (R, P) in place; tiou (R, P) is used up. -inf (picked) stays -inf."""
        if self.method == "hard":
            np.putmask(scores, tiou > self.threshold, -np.inf)
            return
        if self.threshold > 0:
            np.putmask(tiou, tiou <= self.threshold, 0)
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
    for i in range(0, len(scores) if keep else 0, group):
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
    for m in range(picked.shape[1]):
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
