"""Proposals: all candidate segments, and how a stage moves its anchors.

The dense map of candidates: ETAD (Liu et al., CVPRW 2023), section 3.3. Everything is in feature steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import clamp_segments, from_centre_width, to_centre_width

MIN_WIDTH = 0.1  # steps; refined anchors are at least this long
_MAX_LOG_SCALE = 2.0  # a stage changes a width by at most exp(+-2)


def candidate_proposals(num_steps: int, *, device: torch.device | str = "cpu") -> Tensor:
    """All segments from one step edge to another, 0 <= start < end <= T, by start, then end.

    Returns (T * (T + 1) / 2, 2) float32.
    """
    start, end = torch.triu_indices(num_steps, num_steps, device=device)
    return torch.stack([start, end + 1], -1).float()


def encode_boundaries(anchors: Tensor, targets: Tensor) -> Tensor:
    """Offsets of start and end in anchor lengths: (..., 2), (..., 2) -> (..., 2)."""
    width = (anchors[..., 1:] - anchors[..., :1]).clamp(min=MIN_WIDTH)
    return (targets - anchors) / width


def decode_boundaries(anchors: Tensor, offsets: Tensor) -> Tensor:
    """The inverse of `encode_boundaries`."""
    return anchors + offsets * (anchors[..., 1:] - anchors[..., :1]).clamp(min=MIN_WIDTH)


def encode_centre_width(anchors: Tensor, targets: Tensor) -> Tensor:
    """Offset of the centre in anchor lengths and log ratio of the widths: (..., 2), (..., 2) -> (..., 2)."""
    anchor, target = to_centre_width(anchors), to_centre_width(targets)
    width = anchor[..., 1].clamp(min=MIN_WIDTH)
    ratio = target[..., 1].clamp(min=MIN_WIDTH) / width
    return torch.stack([(target[..., 0] - anchor[..., 0]) / width, ratio.log()], -1)


def decode_centre_width(anchors: Tensor, offsets: Tensor) -> Tensor:
    """The inverse of `encode_centre_width`; widths change by a factor of at most exp(2)."""
    centre, width = to_centre_width(anchors).unbind(-1)
    width = width.clamp(min=MIN_WIDTH)
    scale = offsets[..., 1].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()
    return from_centre_width(torch.stack([centre + offsets[..., 0] * width, width * scale], -1))


def refine(anchors: Tensor, boundary_offsets: Tensor, centre_offsets: Tensor, *, num_steps: int) -> Tensor:
    """The mean of the two decodings, inside [0, num_steps] and at least MIN_WIDTH long; all (..., 2)."""
    decoded = (
        decode_boundaries(anchors, boundary_offsets) + decode_centre_width(anchors, centre_offsets)
    ) / 2
    return clamp_segments(decoded, limit=num_steps, min_width=MIN_WIDTH)
