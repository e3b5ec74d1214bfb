"""A network without an encoder: features of videos in, the detection loss or predictions out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.detector.build import build_detector
from model.detector.detector import Prediction
from model.detector.settings import DetectorSettings
from model.network import check_training


class FeatureNetwork(nn.Module):
    """The detector of a Network alone, of the same loss and predictions; its encoder is the identity."""

    clip_ratio = 1.0  # of features; there is no clip to sample

    def __init__(self, detector: DetectorSettings, *, num_features: int, num_classes: int):
        """num_features: D, channels of the features."""
        super().__init__()
        self.encoder = nn.Identity()
        self.detector = build_detector(detector, num_features=num_features, num_classes=num_classes)

    def forward(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor] | None = None,
        gt_labels: Sequence[Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        video_shares: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]] | Prediction:
        """features: (B, D, T), on any device; all else as in Network.forward."""
        parameter = next(self.detector.parameters())
        features = features.to(parameter.device, non_blocking=True)
        if gt_segments is None and gt_labels is None:
            return self.detector.detect(features, video_shares)
        gt_segments, gt_labels, generator = check_training(gt_segments, gt_labels, generator)
        if video_shares is None:
            return self.detector.loss(features, gt_segments, gt_labels, generator=generator)
        return self.detector.masked_loss(features, gt_segments, gt_labels, video_shares, generator=generator)
