"""The losses of the detector and their targets, each a pure function of float32 tensors.

ETAD (Liu et al., CVPRW 2023) and BMN (Lin et al., ICCV 2019) balance by drawing as many negatives as
positives. We weight instead: the expectation of that draw, with less noise and without a generator. Focal
loss: Lin et al., ICCV 2017; with tIoU as a soft target: Li et al., "Generalized Focal Loss", NeurIPS 2020.
Every loss is finite and in the graph when nothing is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of values * weights over the sum of the weights; 0 if that is 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def boundary_targets(gt_segments: Tensor, gt_mask: Tensor, num_steps: int, *, radius: float) -> Tensor:
    """How much of each step lies within `radius` steps of an action's start (row 0) or end (row 1).

    gt_segments: (B, A, 2) steps; gt_mask: (B, A) bool. Returns (B, 2, T) in [0, 1].
    """
    steps = torch.arange(num_steps, dtype=gt_segments.dtype, device=gt_segments.device)
    points = gt_segments.transpose(1, 2)[..., None]  # (B, 2, A, 1)
    overlap = torch.minimum(points + radius, steps + 1) - torch.maximum(points - radius, steps)
    overlap = overlap.clamp(0, 1) * gt_mask[:, None, :, None]
    return overlap.amax(2) if gt_mask.shape[1] else overlap.sum(2)


def step_class_targets(
    gt_segments: Tensor, gt_labels: Tensor, gt_mask: Tensor, num_steps: int, num_classes: int
) -> Tensor:
    """How much of each step an action of each class covers.

    gt_segments: (B, A, 2) steps; gt_labels, gt_mask: (B, A). Returns (B, K, T) in [0, 1].
    """
    steps = torch.arange(num_steps, dtype=gt_segments.dtype, device=gt_segments.device)
    cover = torch.minimum(gt_segments[..., 1:], steps + 1) - torch.maximum(gt_segments[..., :1], steps)
    cover = cover.clamp(0, 1) * gt_mask[..., None]  # (B, A, T)
    targets = cover.new_zeros(len(cover), num_classes, num_steps)
    return targets.scatter_reduce(1, gt_labels[..., None].expand_as(cover), cover, "amax")


def proposal_class_targets(
    tiou: Tensor, gt_labels: Tensor, gt_mask: Tensor, num_classes: int, *, threshold: float
) -> Tensor:
    """A proposal's highest tIoU with an action of each class, 0 where it does not exceed the threshold.

    tiou: (B, P, A); gt_labels, gt_mask: (B, A). Returns (B, P, K); several classes may hold at once.
    """
    high = tiou * ((tiou > threshold) & gt_mask[:, None])
    targets = high.new_zeros(*high.shape[:2], num_classes)
    return targets.scatter_reduce(2, gt_labels[:, None].expand(high.shape), high, "amax")


def balanced_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy in which positives and negatives weigh the same in total.

    targets in [0, 1] may be soft.
    """
    positives, negatives = targets.sum(), (1 - targets).sum()
    losses = -targets * F.logsigmoid(logits) / positives.clamp(min=1)
    losses = losses - (1 - targets) * F.logsigmoid(-logits) / negatives.clamp(min=1)
    return losses.sum() / 2


def weighted_bce(logits: Tensor, targets: Tensor, *, positive_weight: float) -> Tensor:
    """Binary cross entropy of each step, summed over classes: (B, K, T); positives weigh `positive_weight`.

    targets in [0, 1] may be soft.
    """
    weight = torch.full((), positive_weight, device=logits.device)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
    return losses.sum(1).mean()


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of the sigmoid focal losses over the number of positives (at least 1).

    targets in [0, 1] may be soft.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = (targets - logits.sigmoid()).abs() ** gamma
    weights = alpha * targets + (1 - alpha) * (1 - targets)
    return (weights * error * losses).sum() / targets.sum().clamp(min=1)


def tiou_class_loss(logits: Tensor, tiou: Tensor, *, threshold: float) -> Tensor:
    """Whether the tIoU is above the threshold: cross entropy; negatives weigh as much as positives in total.

    logits, tiou: (B, P), tiou the highest with any action. Without positives the negatives weigh as
    much as one positive would.
    """
    positive = (tiou > threshold).float()
    count = positive.sum().clamp(min=1)
    weights = positive + (1 - positive) * count / (1 - positive).sum().clamp(min=1)
    losses = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (losses * weights).sum() / (2 * count)


def tiou_regression_loss(logits: Tensor, tiou: Tensor, *, high: float = 0.7, low: float = 0.3) -> Tensor:
    """The value of the tIoU: squared error of the sigmoid.

    logits, tiou: (B, P). Proposals above `high`, below `low` and in between weigh the same in total.
    """
    groups = torch.stack([tiou > high, (tiou <= high) & (tiou >= low), tiou < low]).float()
    count = groups.flatten(1).sum(1)
    shares = (count > 0) / count.clamp(min=1)
    weights = (groups * shares[:, None, None]).sum(0)
    return weighted_mean((logits.sigmoid() - tiou) ** 2, weights)


def boundary_match_targets(anchors: Tensor, gt_segments: Tensor, *, tolerance: float) -> Tensor:
    """1 where an anchor's start (end) is within `tolerance` of its length from that of its matched action.

    anchors, gt_segments: (B, P, 2), the second the matched action of each anchor. Returns (B, P, 2).
    """
    width = anchors[..., 1:] - anchors[..., :1]
    return ((anchors - gt_segments).abs() <= tolerance * width).float()


def offset_loss(offsets: Tensor, targets: Tensor, positive: Tensor, *, beta: float) -> Tensor:
    """Mean smooth L1 over the positive proposals: offsets, targets (B, P, 2), positive (B, P) in {0, 1}."""
    losses = F.smooth_l1_loss(offsets, targets, beta=beta, reduction="none").sum(-1)
    return weighted_mean(losses, positive)
