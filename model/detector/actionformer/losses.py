"""The losses of ActionFormer: focal for classes, distance-IoU for segments, and what both are divided by.

Focal loss: Lin et al., ICCV 2017. Distance-IoU: Zheng et al., AAAI 2020, here in one dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ALPHA, _GAMMA = 0.25, 2.0
_TINY = 1e-8


def focal_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid focal loss of each logit; targets in [0, 1] may be smoothed. Any shape -> the same."""
    scores = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = scores + targets - 2 * scores * targets
    return (_ALPHA * targets + (1 - _ALPHA) * (1 - targets)) * error**_GAMMA * entropy


def smooth_labels(classes: Tensor, smoothing: float) -> Tensor:
    """Targets (..., K) of which `smoothing` is spread over K + 1 classes, the background being one."""
    return classes * (1 - smoothing) + smoothing / (classes.shape[-1] + 1)


def distance_iou_losses(distances: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + the squared distance of the centres over that of the outer ends, per pair of segments.

    distances, targets: (..., 2), not negative, from a point in both segments to start and end. Returns (...).
    """
    left, right = distances.unbind(-1)
    gt_left, gt_right = targets.unbind(-1)
    inner = torch.minimum(left, gt_left) + torch.minimum(right, gt_right)
    union = (left + right) + (gt_left + gt_right) - inner
    outer = torch.maximum(left, gt_left) + torch.maximum(right, gt_right)
    between_centres = (right - left - gt_right + gt_left) / 2
    iou = inner / union.clamp(min=_TINY)
    return 1 - iou + (between_centres / outer.clamp(min=_TINY)) ** 2


class RunningNormaliser(nn.Module):
    """The moving average of how many points are matched in a step; every rank has the same.

    In evaluation mode: the number itself, at least 1, and the average stays.
    """

    value: Tensor

    def __init__(self, start: float, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.tensor(start, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, count: Tensor) -> Tensor:
        """count: scalar, matched points of this rank's videos. Returns what to divide their losses by."""
        count = _mean_over_ranks(count.float()).clamp(min=1)
        if not self.training:
            return count
        self.value.mul_(self.momentum).add_((1 - self.momentum) * count)
        return self.value.clone()


def _mean_over_ranks(value: Tensor) -> Tensor:
    """A resumed run starts from the average of rank 0: it must be everybody's."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
