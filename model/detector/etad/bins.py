"""The bins of a proposal as ETAD computes them: torchvision's RoI align in one dimension.

A bin is the mean of points at equal gaps of at most a step, and the value of step s stands at s, not at its
centre s + 0.5 (torchvision's `aligned=False`); in OpenTAD at its centre (`aligned=True`). As in ../align.py
it is a product with a weight matrix, so the same bits on every run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..align import align_weights

Weights = Callable[[Tensor, int, int], Tensor]

_SLACK = 1e-4  # steps; points that near to the border of what counts are computed as torchvision does


def sampled_weights(segments: Tensor, num_steps: int, num_bins: int, *, aligned: bool = False) -> Tensor:
    """The weight of each step in each bin.

    segments: (..., 2) start and end in steps, may leave [0, T]: points before -1 or after T count as 0.
    Shorter than a step, or turned round, they count as a step long. aligned: values stand at the centres of
    steps, and segments of no length, or turned round, have no points: 0. Returns (..., num_bins, num_steps).
    """
    length = segments[..., 1] - segments[..., 0]
    width = (length if aligned else length.clamp(min=1))[..., None, None] / num_bins
    segments = segments - 0.5 if aligned else segments
    bins = torch.arange(num_bins, dtype=segments.dtype, device=segments.device)[:, None]
    begin = torch.arange(-1, num_steps + 1, dtype=segments.dtype, device=segments.device)
    count = width.ceil().clamp(min=0)  # points in a bin, (..., 1, 1)
    gap, start = width / count.clamp(min=1), segments[..., 0, None, None] + bins * width  # start of each bin
    gap = torch.where(count > 0, gap, 1)
    # The first point that is not before each step, and how many lie between a step and the next, from -1 on.
    limits = begin.clone()
    limits[0], limits[-1] = -1 - _SLACK, num_steps + _SLACK
    number = ((limits - start) / gap - 0.5).ceil().clamp(min=0).minimum(count)  # (..., num_bins, T + 2)
    number[..., :1] += (start + (number[..., :1] + 0.5) * gap < -1).to(number.dtype)
    number[..., -1:] -= (start + (number[..., -1:] - 0.5) * gap > num_steps).to(number.dtype)
    number = number.clamp(min=0).minimum(count)  # where no point is inside
    between = number.diff(dim=-1)
    ahead = start + (number[..., :-1] + 0.5) * gap - begin[:-1]  # of the first of them from the step
    later = between * ahead + gap * between * (between - 1) / 2  # their weight on the next step, in all
    earlier = between - later
    weights = later[..., :-1] + earlier[..., 1:]
    weights[..., 0] += earlier[..., 0]  # outside, the outermost steps go on
    weights[..., -1] += later[..., -1]
    return weights / count.clamp(min=1)


def bin_weights(kind: Literal["sampled", "aligned", "exact"]) -> Weights:
    """How the steps of a segment count in its bins, by the name in the settings."""
    if kind == "exact":
        return align_weights
    return partial(sampled_weights, aligned=kind == "aligned")
