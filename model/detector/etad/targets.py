"""What ETAD's detector is trained towards; its small constants are those of the released code."""

from __future__ import annotations

import torch
from torch import Tensor

from ...segments import from_centre_width, pairwise_tiou, to_centre_width
from .. import losses
from ..ground_truth import PaddedActions

_EPSILON = 1e-6  # of a window, and of a ratio


def matched_segments(anchors: Tensor, actions: PaddedActions) -> Tensor:
    """The action that each anchor overlaps most, the first if it overlaps none: (B, P, 2) -> (B, P, 2).

    A video without actions has a segment of no length at 0.
    """
    tiou = pairwise_tiou(anchors, actions.segments).masked_fill(~actions.mask[:, None], -1)
    match = tiou.argmax(2)
    return actions.segments.gather(1, match[..., None].expand(-1, -1, 2))


def tiou_with(matched: Tensor, anchors: Tensor) -> Tensor:
    """tIoU of each anchor (B, P, 2) with its own action (B, P, 2): (B, P)."""
    return pairwise_tiou(anchors[..., None, :], matched[..., None, :])[..., 0, 0]


def boundary_targets(actions: PaddedActions, num_steps: int, *, radius: float) -> Tensor:
    """Those of ../losses.py, (B, 2, T), as shares of a step that is a little longer than one."""
    targets = losses.boundary_targets(actions.segments, actions.mask, num_steps, radius=radius)
    return targets / (1 + _EPSILON * num_steps)


def targets_at_ends(targets: Tensor, anchors: Tensor) -> Tensor:
    """The boundary target of the step in which an anchor starts, and ends: (B, 2, T) -> (B, P, 2)."""
    steps = anchors.nan_to_num().clamp(0, targets.shape[2] - 1).long()
    return targets.gather(2, steps.transpose(1, 2)).transpose(1, 2)


def offset_targets(anchors: Tensor, matched: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Offsets of start and end, and of the centre with the log ratio of the widths; all (B, P, 2).

    Offsets are in lengths of the anchor.
    """
    least = _EPSILON * num_steps
    width = (anchors[..., 1:] - anchors[..., :1]).clamp(min=least)
    of_ends = (matched - anchors) / width
    ratio = (matched[..., 1:] - matched[..., :1]).clamp(min=least) / width
    of_centre = torch.cat([of_ends.mean(-1, keepdim=True), (ratio + _EPSILON).log()], -1)
    return of_ends, of_centre


def refine(anchors: Tensor, boundary_offsets: Tensor, centre_offsets: Tensor) -> Tensor:
    """The mean of the two decodings, all (..., 2). It may leave [0, T], and end before it starts."""
    centre, width = to_centre_width(anchors).unbind(-1)
    by_ends = anchors + boundary_offsets * width[..., None]
    moved, scaled = centre + centre_offsets[..., 0] * width, width * centre_offsets[..., 1].exp()
    return (by_ends + from_centre_width(torch.stack([moved, scaled], -1))) / 2
