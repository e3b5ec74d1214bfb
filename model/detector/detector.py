"""What every detector is: features of videos in; a loss in training, scored segments in prediction.

`model/detector/build.py` chooses one by `detector.kind`. A further one is a module of this form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..deterministic import interpolate_steps
from .ground_truth import PaddedActions, pad_actions


@dataclass(frozen=True)
class Prediction:
    """Scored segments of B videos; float32, on the features' device, without a graph."""

    segments: Tensor  # (B, P, 2) start and end in steps, 0 <= start < end <= T
    quality: Tensor  # (B, P) in [0, 1]: how well the segment fits some action
    class_scores: Tensor  # (B, P, K) in [0, 1]: tIoU with an action of that class; several may be high
    boundary: Tensor  # (B, 2, T) in [0, 1]: start, end at each step


class Detector(nn.Module, ABC):
    """Features of videos -> their actions. Weights may be bfloat16; results are float32."""

    proposal_ratio: float = 1.0  # of the next step, where proposals are drawn; a run with a schedule sets it

    def __init__(self, *, num_steps: int, num_features: int, num_classes: int):
        """num_steps: T, the feature steps of a window; num_features: D, their channels; num_classes: K."""
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(
                f"detector: got {num_features} features and {num_classes} classes, want at least 1 of each"
            )
        self.num_steps, self.num_features, self.num_classes = num_steps, num_features, num_classes

    @abstractmethod
    def loss(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        *,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of B videos and its weighted parts.

        features: (B, D, T'), interpolated to T; gt_segments: per video (A, 2) start and end in the T steps,
        clipped to [0, T]; gt_labels: per video (A,) in [0, K). A may be 0. generator: a CPU generator, for
        what is drawn. Returns a float32 scalar, and detached scalars that sum to it. ValueError: shapes,
        labels or segments wrong.
        """

    @abstractmethod
    def predict(self, features: Tensor) -> Prediction:
        """Scored segments of every video, without a graph: features (B, D, T') -> Prediction."""

    def padded_actions(
        self, features: Tensor, gt_segments: Sequence[Tensor], gt_labels: Sequence[Tensor]
    ) -> PaddedActions:
        """The ground truth of `loss`, checked and padded, on the CPU; ValueError as `loss`."""
        return pad_actions(
            gt_segments,
            gt_labels,
            num_videos=len(features),
            num_steps=self.num_steps,
            num_classes=self.num_classes,
        )

    def features_in_steps(self, features: Tensor) -> Tensor:
        """(B, D, T') -> (B, D, T), interpolated, in the weights' dtype; ValueError for any other shape."""
        if features.dim() != 3 or features.shape[1] != self.num_features or 0 in features.shape:
            raise ValueError(
                f"detector: features {tuple(features.shape)}, want (B, {self.num_features}, T), none empty"
            )
        features = features.to(next(self.parameters()).dtype)
        return (
            features if features.shape[2] == self.num_steps else interpolate_steps(features, self.num_steps)
        )
