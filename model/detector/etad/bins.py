"""The bins of a proposal as ETAD computes them: torchvision's RoI align in one dimension.

A bin is the mean of points at equal gaps of at most a step, and the value of step s stands at s, not at its
centre s + 0.5 (torchvision's `aligned=False`). As in ../align.py it is a product with a weight matrix, so
the same bits on every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

_POINTS = 6  # gaps are above half a step where a bin has several points: no more fall within a step's reach


def sampled_weights(segments: Tensor, num_steps: int, num_bins: int) -> Tensor:
    """The weight of each step in each bin.

    segments: (..., 2) start and end in steps, may leave [0, T], where points farther than a step outside
    count as 0; shorter than a step, or turned round, they count as a step long. Returns
    (..., num_bins, num_steps).
    """
    start = segments[..., 0, None, None]
    width = (segments[..., 1] - segments[..., 0]).clamp(min=1)[..., None, None] / num_bins
    bins = torch.arange(num_bins, dtype=segments.dtype, device=segments.device)[:, None]
    steps = torch.arange(num_steps, dtype=segments.dtype, device=segments.device)
    count = width.ceil()  # points in a bin
    gap, first = width / count, start + bins * width  # first: where each bin begins, (..., num_bins, 1)
    nearest = ((steps - 1 - first) / gap - 0.5).floor().clamp(min=0).minimum(count - 1)
    weights = segments.new_zeros(*segments.shape[:-1], num_bins, num_steps)
    for ahead in range(_POINTS):
        number = nearest + ahead
        point = first + (number + 0.5) * gap
        counts = (number < count) & (point >= -1) & (point <= num_steps)
        distance = (point.clamp(0, num_steps - 1) - steps).abs()
        weights = weights + (1 - distance).clamp(min=0) * counts
    return weights / count
