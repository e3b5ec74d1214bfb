"""1-D RoI align: average the features of each segment into a fixed number of bins, exactly.

After RoI align (He et al., "Mask R-CNN", ICCV 2017). We depart in two ways. A bin is the exact mean of the
interpolated signal over the bin, not of a few sample points, so that a long segment is not aliased. And it
is a product with a weight matrix, whose backward is a product too: no atomic additions, so the same bits on
every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_BIN = 2e-3  # steps; a narrower bin is widened to this: float32 would lose the difference of its ends


def expand_segments(segments: Tensor, ratio: float) -> Tensor:
    """Lengthen segments (..., 2) by `ratio` of their length on each side; they may leave [0, T]."""
    extra = (segments[..., 1] - segments[..., 0]) * ratio
    return torch.stack([segments[..., 0] - extra, segments[..., 1] + extra], -1)


def bin_edges(segments: Tensor, num_bins: int) -> Tensor:
    """The edges of equal bins: segments (..., 2) -> (..., num_bins + 1), rising.

    A segment that ends before it starts counts as one of no length at its start; one of no length gets bins
    of `_MIN_BIN` steps around it.
    """
    start, length = segments[..., 0], (segments[..., 1] - segments[..., 0]).clamp(min=0)
    half_length = length.clamp(min=_MIN_BIN * num_bins) / 2
    relative = torch.linspace(-1, 1, num_bins + 1, dtype=segments.dtype, device=segments.device)
    return (start + length / 2)[..., None] + half_length[..., None] * relative


def align_weights(segments: Tensor, num_steps: int, num_bins: int) -> Tensor:
    """The weight of each step in each bin.

    segments: (..., 2) float32 start and end in steps. Returns (..., num_bins, num_steps), rows summing to the
    share of the bin that lies inside [0, num_steps].

    The signal is linear between the step centres s + 0.5, constant from the outermost centres to 0 and to
    T, and 0 beyond. So the weight of step s is the integral of the hat function around s + 0.5; the hats at
    -0.5 and T + 0.5 carry the values of the first and last step.
    """
    edges = bin_edges(segments, num_bins)
    widths = edges[..., 1:] - edges[..., :-1]
    clamped = edges.clamp(0, num_steps)
    centres = torch.arange(num_steps, dtype=edges.dtype, device=edges.device) + 0.5
    integral = _hat_integral(clamped[..., None] - centres)  # (..., num_bins + 1, T)
    integral[..., 0] += _hat_integral(clamped + 0.5)
    integral[..., -1] += _hat_integral(clamped - num_steps - 0.5)
    return (integral[..., 1:, :] - integral[..., :-1, :]).div_(widths[..., None])


def _hat_integral(u: Tensor) -> Tensor:
    """The integral of the hat 1 - |u| from 0 to u, for u clamped to [-1, 1]; overwrites u."""
    u = u.clamp_(-1, 1)
    return u.abs().mul_(-0.5).add_(1).mul_(u)


def pool_bins(features: Tensor, weights: Tensor) -> Tensor:
    """Features (B, C, T) by weights (B, P, num_bins, T) -> (B, P, C, num_bins); bins come first in memory."""
    pooled = weights.to(features.dtype).flatten(1, 2) @ features.transpose(1, 2)  # (B, P * num_bins, C)
    return torch.unflatten(pooled, 1, weights.shape[1:3]).transpose(2, 3)
