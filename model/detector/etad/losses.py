"""The losses of ETAD's detector as released: of scores in [0, 1], balanced by drawing.

Cross entropies add 1e-6 to what they take the logarithm of. All are finite, and in the graph, when nothing is
positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-6


def _losses(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each score if it should be 1, and if it should be 0."""
    return -(scores + _EPSILON).log(), -(1 - scores + _EPSILON).log()


def boundary_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Of start and end scores (B, 2, T); targets above 0.5 are positive.

    Positives and negatives weigh the same; where there is one kind alone, it counts whole. Start and end sum.
    """
    positive = (targets > 0.5).float().transpose(0, 1).flatten(1)  # (2, B * T)
    masks = torch.stack([positive, 1 - positive])
    count = masks.sum(2)
    weight = positive.shape[1] / (count > 0).sum(0) / count.clamp(min=1)  # float32, as released
    losses = torch.stack(_losses(scores)).transpose(1, 2).flatten(2)  # (2, 2, B * T): kind, start or end
    return (weight[..., None] * masks * losses).sum(0).mean(1).sum()


def drawn(draws: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """About `count` of the group, those with the highest draws; 1 where it is chosen.

    draws: uniform in [0, 1); group: 1 or 0. As released: where `count` exceeds the group, or it is empty,
    every element is chosen, those outside the group, too.
    """
    return (draws * group > 1 - count / group.sum()).to(group.dtype)


def drawn_class_loss(scores: Tensor, targets: Tensor, draws: Tensor, *, threshold: float) -> Tensor:
    """Cross entropy of scores that say whether the target is above the threshold; all of one shape.

    Of the negatives as many as positives are drawn; without positives all count.
    """
    if_positive, if_negative = _losses(scores)
    positive = (targets > threshold).to(scores.dtype)
    count = positive.sum()
    negative = drawn(draws, 1 - positive, count)
    balanced = (if_positive * positive + if_negative * negative).sum() / (count + negative.sum()).clamp(min=1)
    return torch.where(count > 0, balanced, if_negative.mean())


def drawn_tiou_loss(
    scores: Tensor, tiou: Tensor, draws: tuple[Tensor, Tensor], *, high: float = 0.7, low: float = 0.3
) -> Tensor:
    """Squared error of the estimated tIoU.

    Of those between `low` and `high`, and of those below, as many are drawn as lie above, by the first and
    the second of the draws; where none lies above, all count.
    """
    groups = [(tiou > high), (tiou <= high) & (tiou > low), tiou <= low]
    above, between, below = (group.to(scores.dtype) for group in groups)
    count = above.sum()
    chosen = above + drawn(draws[0], between, count) + drawn(draws[1], below, count)
    losses = (scores - tiou) ** 2
    return torch.where(count > 0, (losses * chosen).sum() / chosen.sum().clamp(min=1), losses.mean())
