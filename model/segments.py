"""Pure functions of 1-D segments: temporal IoU, clamping, start and end from centre and width.

Every function works in any unit (steps, seconds).
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; unchanged if it is float32 or float64 already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def pairwise_tiou(first: Tensor, second: Tensor) -> Tensor:
    """Temporal intersection over union of every pair.

    first: (..., P, 2), second: (..., A, 2) start and end, leading dims broadcast. Returns (..., P, A) in
    [0, 1], float32 or wider. A segment of no length (or one that ends before it starts) has tIoU 0 with
    everything.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    start1, end1 = first[..., :, None, 0], first[..., :, None, 1]
    start2, end2 = second[..., None, :, 0], second[..., None, :, 1]
    intersection = (torch.minimum(end1, end2) - torch.maximum(start1, start2)).clamp(min=0)
    union = (end1 - start1).clamp(min=0) + (end2 - start2).clamp(min=0) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


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
