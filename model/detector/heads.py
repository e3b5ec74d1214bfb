"""The heads: boundaries and classes of every step, and one stage of the proposal cascade.

After ETAD (Liu et al., CVPRW 2023), whose detector is class-agnostic; the class heads are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .align import align_weights, expand_segments, pool_bins
from .neck import channel_norm, temporal_conv

PROFILE_DIM = 32  # hidden width of the profile head, which all classes share


def prior_bias(layer: nn.Linear | nn.Conv1d, prior: float) -> None:
    """Start a layer of logits at sigmoid = `prior`: the many negatives do not outweigh the few positives."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))


class StepHead(nn.Module):
    """One set of logits per step: (B, neck_dim, T) -> (B, outputs, T) float32."""

    def __init__(self, neck_dim: int, outputs: int, *, prior: float):
        super().__init__()
        self.conv = nn.Sequential(temporal_conv(neck_dim, neck_dim), channel_norm(neck_dim), nn.ReLU())
        self.logits = nn.Conv1d(neck_dim, outputs, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        prior_bias(self.logits, prior)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.conv(features))
        return logits.float()


@dataclass(frozen=True)
class StageOutput:
    """The scores and offsets of one stage for each of its anchors; float32."""

    tiou_logits: Tensor  # (B, P, 2): whether the tIoU with an action is high; its value
    boundary_logits: Tensor  # (B, P, 2): whether the start, the end is near that of an action
    boundary_offsets: Tensor  # (B, P, 2): of start and end, in anchor lengths
    centre_offsets: Tensor  # (B, P, 2): of the centre in anchor lengths, log of the width ratio
    class_logits: Tensor  # (B, P, K)


def proposal_head(inputs: int, head_dim: int, outputs: int, *, prior: float = 0.5) -> nn.Sequential:
    """Two layers on each anchor; the sigmoid of the output starts near `prior`."""
    first, last = nn.Linear(inputs, head_dim), nn.Linear(head_dim, outputs)
    nn.init.normal_(last.weight, std=0.01)
    prior_bias(last, prior)
    return nn.Sequential(first, nn.ReLU(), last)


class ProposalStage(nn.Module):
    """One stage of the cascade: align the features to the lengthened anchors, score the anchors, move them.

    neck_dim: channels of the features; fc_dim: width of the layer that all heads share; head_dim: width of
    each head. The offset of the start is computed from the first half of the bins, that of the end from the
    second. The class score has two sources: the shared layer, and a profile head that gets the step scores
    of one class in each bin. All classes share that head, so every action trains it, and overlapping actions
    of two classes do not disturb each other.
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
        self.tiou = proposal_head(fc_dim, head_dim, 2, prior=0.1)
        self.box = proposal_head(fc_dim, head_dim, 4)  # boundary logits; offsets of centre and width
        self.start = proposal_head(neck_dim * (roi_bins // 2), head_dim, 1)
        self.end = proposal_head(neck_dim * (roi_bins // 2), head_dim, 1)
        self.classes = proposal_head(fc_dim, head_dim, num_classes, prior=class_prior)
        self.profile = proposal_head(roi_bins, PROFILE_DIM, 1)

    def forward(self, features: Tensor, step_scores: Tensor, anchors: Tensor) -> StageOutput:
        """features (B, neck_dim, T), step_scores (B, K, T) in [0, 1], anchors (B, P, 2) without gradient."""
        x = features + self.conv(features)
        lengthened = expand_segments(anchors, self.roi_context)
        weights = align_weights(lengthened, features.shape[2], self.roi_bins)
        profile = pool_bins(step_scores.to(x.dtype), weights)  # (B, P, K, roi_bins)
        flat = pool_bins(x, weights).transpose(2, 3).flatten(2)  # bins first, as in memory: no copy
        shared = self.shared(flat)
        boundary_logits, centre_offsets = self.box(shared).float().chunk(2, -1)
        start_bins, end_bins = flat.chunk(2, -1)
        boundary_offsets = [self.start(start_bins), self.end(end_bins)]
        return StageOutput(
            tiou_logits=self.tiou(shared).float(),
            boundary_logits=boundary_logits,
            boundary_offsets=torch.cat(boundary_offsets, -1).float(),
            centre_offsets=centre_offsets,
            class_logits=(self.classes(shared) + self.profile(profile).squeeze(-1)).float(),
        )
