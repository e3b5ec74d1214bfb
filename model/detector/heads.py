"""The heads: boundaries and classes of every step, and one stage of the proposal cascade.

After ETAD (Liu et al., CVPRW 2023), whose detector knows no classes; the class heads are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .align import align_weights, expand_segments, pool_bins
from .neck import channel_norm, temporal_conv

PROFILE_HIDDEN = 32  # width of the class-shared profile head


def prior_bias(layer: nn.Module, prior: float) -> None:
    """Start a layer of logits at sigmoid = `prior`, so that the rare positives are not drowned at first."""
    nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))


class StepHead(nn.Module):
    """One set of logits per step: (B, hidden, T) -> (B, outputs, T) float32."""

    def __init__(self, neck_dim: int, outputs: int, *, prior: float):
        super().__init__()
        self.conv = nn.Sequential(temporal_conv(neck_dim, neck_dim), channel_norm(neck_dim), nn.ReLU())
        self.logits = nn.Conv1d(neck_dim, outputs, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        prior_bias(self.logits, prior)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.conv(features)).float()


@dataclass(frozen=True)
class StageOutput:
    """What one stage says of each proposal, float32 logits and offsets."""

    tiou: Tensor  # (B, P, 2) logits: is the tIoU high; how high
    boundary_logits: Tensor  # (B, P, 2) logits: is the start, the end near a true one
    boundary_offsets: Tensor  # (B, P, 2) start and end, in anchor lengths
    centre_offsets: Tensor  # (B, P, 2) centre in anchor lengths, log of the width ratio
    classes: Tensor  # (B, P, K) logits


def proposal_head(inputs: int, neck_dim: int, outputs: int) -> nn.Sequential:
    """Two layers on each proposal, starting near zero."""
    head = nn.Sequential(nn.Linear(inputs, neck_dim), nn.ReLU(), nn.Linear(neck_dim, outputs))
    nn.init.normal_(head[-1].weight, std=0.01)
    nn.init.zeros_(head[-1].bias)
    return head


class ProposalStage(nn.Module):
    """One stage of the cascade: align the features to the lengthened anchors, score and move them.

    hidden: channels of the features; fc_dim: width of the layer all heads share; head_dim: width of each
    head. The offset of the start is read from the half of the bins around the start, that of the end from the
    other half. The class score has two sources: the shared layer, and a profile head that sees one class at a
    time, how that class's step scores run through the bins. All classes share it, so it learns from every
    action what a well-fitted segment looks like, and overlapping actions of two classes do not blur each
    other.
    """

    def __init__(
        self,
        neck_dim: int,
        fc_dim: int,
        head_dim: int,
        *,
        num_classes: int,
        roi_bins: int,
        roi_context: float,
        class_prior: float,
    ):
        super().__init__()
        self.roi_bins, self.roi_context = roi_bins, roi_context
        self.conv = nn.Sequential(temporal_conv(neck_dim, neck_dim), channel_norm(neck_dim), nn.ReLU())
        self.shared = nn.Sequential(nn.Linear(neck_dim * roi_bins, fc_dim), nn.LayerNorm(fc_dim), nn.ReLU())
        self.tiou = proposal_head(fc_dim, head_dim, 2)
        self.box = proposal_head(fc_dim, head_dim, 4)  # start and end near a true one; centre and width
        self.start = proposal_head(neck_dim * (roi_bins // 2), head_dim, 1)
        self.end = proposal_head(neck_dim * (roi_bins // 2), head_dim, 1)
        self.classes = proposal_head(fc_dim, head_dim, num_classes)
        self.profile = proposal_head(roi_bins, PROFILE_HIDDEN, 1)
        prior_bias(self.tiou[-1], 0.1)
        prior_bias(self.classes[-1], class_prior)

    def forward(self, features: Tensor, step_scores: Tensor, anchors: Tensor) -> StageOutput:
        """features (B, hidden, T), step_scores (B, K, T) in [0, 1], anchors (B, P, 2) steps, no gradient."""
        x = features + self.conv(features)
        wide = expand_segments(anchors, self.roi_context)
        weights = align_weights(wide, features.shape[2], self.roi_bins)  # of roi_align, used twice
        profile = pool_bins(step_scores.to(x.dtype), weights)  # (B, P, K, roi_bins)
        flat = pool_bins(x, weights).transpose(2, 3).flatten(2)  # bins first, as in memory: no copy
        shared = self.shared(flat)
        boundary_logits, centre_offsets = self.box(shared).float().chunk(2, -1)
        half = flat.shape[2] // 2
        boundary_offsets = [self.start(flat[..., :half]), self.end(flat[..., half:])]
        return StageOutput(
            tiou=self.tiou(shared).float(),
            boundary_logits=boundary_logits,
            boundary_offsets=torch.cat(boundary_offsets, -1).float(),
            centre_offsets=centre_offsets,
            classes=(self.classes(shared) + self.profile(profile).squeeze(-1)).float(),
        )
