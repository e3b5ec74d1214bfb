"""ETAD's boundary head and the stages of its cascade as released; class heads, ours, where settings ask."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ...segments import at_least_float32
from ..align import expand_segments, pool_bins
from ..heads import PROFILE_DIM, StageOutput, proposal_head
from ..neck import channel_norm, temporal_conv
from ..settings import DetectorSettings
from .bins import bin_weights


def conv_block(channels: int, *, norm: bool) -> nn.Sequential:
    """A grouped convolution over 3 steps, a norm if wanted, a ReLU."""
    norms = [channel_norm(channels)] if norm else []
    return nn.Sequential(temporal_conv(channels, channels), *norms, nn.ReLU())


def layers(*dims: int) -> nn.Sequential:
    """Linear layers from each number of channels to the next, ReLUs between."""
    each = [layer for a, b in pairwise(dims) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*each[:-1])


def initialize(module: nn.Module) -> None:
    """Weights of convolutions and linear layers as ETAD begins with them (Glorot), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class BoundaryHead(nn.Module):
    """Logits of start and end of every step: (B, neck_dim, T) -> (B, 2, T)."""

    def __init__(self, neck_dim: int, *, norm: bool):
        super().__init__()
        self.conv = conv_block(neck_dim, norm=norm)
        self.logits = nn.Conv1d(neck_dim, 2, 1)
        initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        return at_least_float32(self.logits(self.conv(features)))


class ClassHead(nn.Module):
    """The class scores of proposals, those of ../heads.py: from the shared layer and a profile of steps."""

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        prior = settings.class_prior
        self.classes = proposal_head(settings.fc_dim, settings.head_dim, num_classes, prior=prior)
        self.profile = proposal_head(settings.roi_bins, PROFILE_DIM, 1)

    def forward(self, shared: Tensor, profile: Tensor) -> Tensor:
        """shared: (B, P, fc_dim); profile: (B, P, K, roi_bins). Returns logits (B, P, K)."""
        return at_least_float32(self.classes(shared) + self.profile(profile).squeeze(-1))


class Stage(nn.Module):
    """One stage of the cascade: average the features of the lengthened anchors, score the anchors, move them.

    The offset of the start is computed from the first quarter of the bins, that of the end from the last.
    """

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        own, hidden = settings.etad, (settings.head_dim,) * settings.etad.head_layers
        fc_dim, bins, half = settings.fc_dim, settings.roi_bins, settings.neck_dim // 2
        self.roi_bins, self.roi_context = bins, settings.roi_context
        self.weights = bin_weights(own.bins)
        self.conv = conv_block(settings.neck_dim, norm=own.norms)
        self.reduce = nn.Sequential(nn.Conv1d(settings.neck_dim, half, 3, padding=1), nn.ReLU())
        norms = [nn.LayerNorm(fc_dim)] if own.norms else []
        self.shared = nn.Sequential(nn.Linear(half * bins, fc_dim), *norms, nn.ReLU())
        self.tiou, self.boundary, self.centre = (layers(fc_dim, *hidden, 2) for _ in range(3))
        self.start, self.end = (layers(half * (bins // 4), fc_dim, *hidden, 1) for _ in range(2))
        initialize(self)
        self.class_head = ClassHead(settings, num_classes) if own.class_scores else None

    def forward(self, features: Tensor, step_scores: Tensor | None, anchors: Tensor) -> StageOutput:
        """features: (B, neck_dim, T); step_scores: (B, K, T) in [0, 1], None without class scores; anchors:
        (B, P, 2) without gradient."""
        x = self.reduce(features + self.conv(features))
        lengthened = expand_segments(anchors, self.roi_context)
        weights = self.weights(lengthened, x.shape[2], self.roi_bins)
        pooled = pool_bins(x, weights)  # (B, P, neck_dim / 2, roi_bins)
        quarter = self.roi_bins // 4
        ends = self.start(pooled[..., :quarter].flatten(2)), self.end(pooled[..., -quarter:].flatten(2))
        shared = self.shared(pooled.flatten(2))
        if self.class_head is None or step_scores is None:
            class_logits = shared.new_zeros(*shared.shape[:2], 0)
        else:
            class_logits = self.class_head(shared, pool_bins(step_scores.to(x.dtype), weights))
        return StageOutput(
            tiou_logits=at_least_float32(self.tiou(shared)),
            boundary_logits=at_least_float32(self.boundary(shared)),
            boundary_offsets=at_least_float32(torch.cat(ends, -1)),
            centre_offsets=at_least_float32(self.centre(shared)) / 2,
            class_logits=class_logits,
        )
