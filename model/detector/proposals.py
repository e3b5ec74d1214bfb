"""Proposals: all candidate segments, the sample that is trained on, and how a stage moves its anchors.

The dense map of candidates and its random sampling: ETAD (Liu et al., CVPRW 2023), section 3.3. Everything
is in feature steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import clamp_segments, from_centre_width, pairwise_tiou, to_centre_width

MIN_WIDTH = 0.1  # steps; refined anchors are at least this long
_MAX_LOG_SCALE = 2.0  # a stage changes a width by at most exp(+-2)


def candidate_proposals(num_steps: int, *, device: torch.device | str = "cpu") -> Tensor:
    """All segments from one step edge to another, 0 <= start < end <= T, by start, then end.

    Returns (T * (T + 1) / 2, 2) float32.
    """
    start, end = torch.triu_indices(num_steps, num_steps, device=device)
    return torch.stack([start, end + 1], -1).float()


def sample_random(
    candidates: Tensor, num_videos: int, num_samples: int, *, generator: torch.Generator
) -> Tensor:
    """Draw for every video on its own, each candidate as likely (ETAD): (P, 2) -> (B, num_samples, 2)."""
    draws = [sample_proposals(candidates, num_samples, generator=generator) for _ in range(num_videos)]
    return torch.stack(draws)


def sample_balanced(
    candidates: Tensor,
    gt_segments: Tensor,
    gt_mask: Tensor,
    num_samples: int,
    *,
    share: float,
    min_tiou: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw about `share` of the samples around the annotated actions, as many for each; the rest among all.

    candidates: (P, 2); gt_segments: (B, A, 2); gt_mask: (B, A) bool. Returns (B, num_samples, 2), without
    replacement, in the candidates' order. Around: tIoU of at least `min_tiou` with the action. In a uniform
    draw a short action overlaps a handful of candidates, often none of the sampled ones; here every action
    has about the same number of proposals in every iteration. A video without actions gets a uniform draw.
    """
    near = (pairwise_tiou(candidates, gt_segments) >= min_tiou) & gt_mask[:, None]  # (B, P, A)
    per_action = near / near.sum(1, keepdim=True).clamp(min=1)
    actions = gt_mask.sum(1).clamp(min=1)[:, None]
    weights = share * per_action.sum(2) / actions + (1 - share) / len(candidates)
    chosen = torch.multinomial(weights, num_samples, generator=generator)
    return candidates[chosen.sort(1).values]


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


def sample_proposals(candidates: Tensor, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Draw `num_samples` of the candidate segments, without replacement.

    candidates: (P, 2) start and end in feature steps. Returns (num_samples, 2), in the candidates' order.
    """
    if not 1 <= num_samples <= len(candidates):
        raise ValueError(f"num_samples: got {num_samples}, want 1 to {len(candidates)} (the candidates)")
    chosen = torch.randperm(len(candidates), generator=generator, device=generator.device)[:num_samples]
    return candidates[chosen.sort().values.to(candidates.device)]
