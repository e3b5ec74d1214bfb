"""The detector: features of videos in, segments with scores out; its losses in training.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023): a neck with two LSTMs, a
boundary head, and three stages that refine and score proposals drawn from the dense map. We depart: two
class heads, so no external classifier is needed; balancing by weights, not by drawing; exact RoI bins;
sampling that may follow the annotated actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..segments import pairwise_tiou
from . import losses
from .ground_truth import PaddedActions, pad_actions
from .heads import ProposalStage, StageOutput, StepHead
from .neck import Neck
from .proposals import (
    candidate_proposals,
    encode_boundaries,
    encode_centre_width,
    refine,
    sample_balanced,
    sample_random,
)


class LossWeights(BaseModel):
    """The weight of each part of the loss; those of the stages count once per stage. ETAD's, and ours for
    classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boundary: float = Field(1.0, ge=0)  # start and end of every step
    step_class: float = Field(1.0, ge=0)  # class of every step; 0 leaves the step head untrained
    tiou_class: float = Field(1.0, ge=0)  # is the tIoU of a proposal high
    tiou_regression: float = Field(5.0, ge=0)  # how high is it
    boundary_offset: float = Field(10.0, ge=0)  # start and end offsets
    centre_offset: float = Field(10.0, ge=0)  # centre and width offsets
    proposal_boundary: float = Field(0.5, ge=0)  # are a proposal's start and end near true ones
    proposal_class: float = Field(4.0, ge=0)  # tIoU of a proposal with the actions of each class


class DetectorSettings(BaseModel):
    """Sizes, sampling and losses of the detector; the defaults are ETAD's where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(
        128, ge=4
    )  # T; other lengths are interpolated to it, the map has T (T + 1) / 2 proposals
    neck_dim: int = Field(256, ge=8, multiple_of=4)  # channels of the neck and of each LSTM
    fc_dim: int = Field(512, ge=8)  # width of the layer that all heads of a stage share
    head_dim: int = Field(128, ge=8)  # width of each head
    roi_bins: int = Field(24, ge=4, multiple_of=2)  # bins a proposal is averaged into
    roi_context: float = Field(
        0.5, ge=0
    )  # a proposal is lengthened by this share on each side before it is averaged
    proposal_ratio: float = Field(0.06, gt=0, le=1)  # share of the map trained on, per video and iteration
    proposal_sampling: Literal["random", "balanced"] = (
        "random"  # balanced: some of them drawn around the truth
    )
    balanced_share: float = Field(0.5, ge=0, lt=1)  # balanced: the share drawn around the truth
    balanced_tiou: float = Field(0.5, gt=0, lt=1)  # balanced: tIoU from which a proposal is around an action
    regression_tiou: tuple[float, ...] = (0.7, 0.8, 0.9)  # one per stage: from which tIoU offsets are taught
    confident_tiou: float = Field(0.9, gt=0, lt=1)  # tIoU above which the tIoU class is positive
    class_tiou: float = Field(
        0.5, gt=0, lt=1
    )  # tIoU above which a proposal's class score is taught that tIoU
    boundary_tolerance: float = Field(
        0.1, gt=0
    )  # an anchor's end is near a true one within this share of its length
    offset_beta: float = Field(
        0.1, gt=0
    )  # below this the smooth L1 of offsets is quadratic; in anchor lengths
    boundary_radius: float = Field(1.0, gt=0)  # steps around a true start or end that count as start or end
    step_class_positives: float = Field(5.0, gt=0)  # weight of a step's own class against the others
    class_prior: float = Field(0.05, gt=0, lt=1)  # the class scores a fresh detector gives
    predict_proposals: int = Field(1024, ge=1)  # proposals of each video walked at once in prediction: memory
    weights: LossWeights = LossWeights()

    @model_validator(mode="after")
    def _check(self) -> DetectorSettings:
        if not self.regression_tiou or not all(0 < t < 1 for t in self.regression_tiou):
            raise ValueError(
                f"regression_tiou: got {self.regression_tiou}, want one value in (0, 1) per stage"
            )
        return self

    @property
    def num_stages(self) -> int:
        return len(self.regression_tiou)

    @property
    def num_samples(self) -> int:
        """Proposals per video and iteration."""
        return max(1, round(self.proposal_ratio * self.num_steps * (self.num_steps + 1) / 2))


@dataclass(frozen=True)
class Prediction:
    """Scored segments of B videos; float32, on the features' device, without a graph."""

    segments: Tensor  # (B, P, 2) start and end in steps, 0 <= start < end <= T
    quality: Tensor  # (B, P) in [0, 1]: how well the segment fits some action
    class_scores: Tensor  # (B, P, K) in [0, 1]: tIoU with an action of that class; several may be high
    boundary: Tensor  # (B, 2, T) in [0, 1]: start, end at each step


class Detector(nn.Module):
    """Neck, step heads and cascade; see `loss` and `predict`.

    Weights may be bfloat16; results are float32.
    """

    def __init__(self, settings: DetectorSettings, *, num_features: int, num_classes: int):
        """num_features: D, channels of the features; num_classes: K."""
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(
                f"detector: got {num_features} features and {num_classes} classes, want at least 1 of each"
            )
        self.settings = settings
        self.num_features, self.num_classes = num_features, num_classes
        self.neck = Neck(num_features, settings.neck_dim)
        self.boundary = StepHead(settings.neck_dim, 2, prior=0.1)
        self.step_class = StepHead(settings.neck_dim, num_classes, prior=settings.class_prior)
        # Bypasses the neck: an encoder trained from scratch then gets a class gradient from the first step.
        self.step_shortcut = nn.Conv1d(num_features, num_classes, 1, bias=False)
        self.stages = nn.ModuleList(
            ProposalStage(
                settings.neck_dim,
                settings.fc_dim,
                settings.head_dim,
                num_classes=num_classes,
                roi_bins=settings.roi_bins,
                roi_context=settings.roi_context,
                class_prior=settings.class_prior,
            )
            for _ in range(settings.num_stages)
        )

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
        clipped to [0, T]; gt_labels: per video (A,) in [0, K). A may be 0. generator: a CPU generator,
        draws the proposals. Returns a float32 scalar, and detached scalars that sum to it. ValueError:
        shapes, labels or segments wrong.
        """
        actions = pad_actions(
            gt_segments,
            gt_labels,
            num_videos=len(features),
            num_steps=self.settings.num_steps,
            num_classes=self.num_classes,
        )
        anchors = self._sample_proposals(actions, generator).to(features.device)
        actions = actions.to(features.device)
        x, step_logits = self._encode_steps(features)
        parts = self._step_losses(x, step_logits, actions)
        for stage, threshold in zip(self.stages, self.settings.regression_tiou, strict=True):
            output = stage(x, step_logits.sigmoid(), anchors)
            for name, value in self._stage_losses(output, anchors, actions, threshold).items():
                parts[name] = parts[name] + value if name in parts else value
            anchors = self._refine(output, anchors)
        weights = self.settings.weights
        parts = {name: getattr(weights, name) * value for name, value in parts.items()}
        return reduce(torch.add, parts.values()), {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def predict(self, features: Tensor) -> Prediction:
        """Refine and score all T (T + 1) / 2 proposals of every video: features (B, D, T') -> Prediction."""
        x, step_logits = self._encode_steps(features)
        step_scores = step_logits.sigmoid()
        candidates = candidate_proposals(self.settings.num_steps, device=x.device)
        chunks = [
            self._predict_chunk(x, step_scores, chunk.expand(len(x), -1, -1))
            for chunk in torch.split(candidates, self.settings.predict_proposals)
        ]
        segments, quality, class_scores = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
        return Prediction(segments, quality, class_scores, self.boundary(x).sigmoid())

    def _encode_steps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The neck's output (B, neck_dim, T) and the class logits of each step (B, K, T), float32.

        features: (B, D, T'); they are checked, cast to the weights' dtype and interpolated to T.
        """
        if features.dim() != 3 or features.shape[1] != self.num_features or 0 in features.shape:
            raise ValueError(
                f"detector: features {tuple(features.shape)}, want (B, {self.num_features}, T), none empty"
            )
        features = features.to(next(self.neck.parameters()).dtype)
        if features.shape[2] != self.settings.num_steps:
            features = F.interpolate(
                features, size=self.settings.num_steps, mode="linear", align_corners=False
            )
        x = self.neck(features)
        return x, self.step_class(x) + self.step_shortcut(features).float()

    def _sample_proposals(self, actions: PaddedActions, generator: torch.Generator) -> Tensor:
        """The proposals of one iteration, on the CPU: (B, num_samples, 2)."""
        settings = self.settings
        candidates = candidate_proposals(settings.num_steps)
        if settings.proposal_sampling == "random":
            return sample_random(candidates, len(actions.mask), settings.num_samples, generator=generator)
        return sample_balanced(
            candidates,
            actions.segments,
            actions.mask,
            settings.num_samples,
            share=settings.balanced_share,
            min_tiou=settings.balanced_tiou,
            generator=generator,
        )

    def _step_losses(self, x: Tensor, step_logits: Tensor, actions: PaddedActions) -> dict[str, Tensor]:
        settings = self.settings
        boundary_targets = losses.boundary_targets(
            actions.segments, actions.mask, settings.num_steps, radius=settings.boundary_radius
        )
        class_targets = losses.step_class_targets(
            actions.segments, actions.labels, actions.mask, settings.num_steps, self.num_classes
        )
        return {
            "boundary": losses.balanced_bce(self.boundary(x), boundary_targets),
            # Weighted, not focal: from random initialisation the focal loss leaves the encoder on a plateau.
            "step_class": losses.weighted_bce(
                step_logits, class_targets, positive_weight=settings.step_class_positives
            ),
        }

    def _stage_losses(
        self, output: StageOutput, anchors: Tensor, actions: PaddedActions, threshold: float
    ) -> dict[str, Tensor]:
        """threshold: tIoU of an anchor with its action above which its offsets are trained."""
        settings, beta = self.settings, self.settings.offset_beta
        tiou = pairwise_tiou(anchors, actions.segments) * actions.mask[:, None]  # (B, P, A)
        best_tiou, match = tiou.max(2)
        matched = actions.segments.gather(1, match[..., None].expand(-1, -1, 2))
        positive = (best_tiou > threshold).float()
        class_targets = losses.proposal_class_targets(
            tiou, actions.labels, actions.mask, self.num_classes, threshold=settings.class_tiou
        )
        near = losses.boundary_match_targets(anchors, matched, tolerance=settings.boundary_tolerance)
        boundary_targets = near * (best_tiou > 0)[..., None]
        return {
            "tiou_class": losses.tiou_class_loss(
                output.tiou_logits[..., 0], best_tiou, threshold=settings.confident_tiou
            ),
            "tiou_regression": losses.tiou_regression_loss(output.tiou_logits[..., 1], best_tiou),
            "proposal_boundary": losses.balanced_bce(output.boundary_logits, boundary_targets),
            "boundary_offset": losses.offset_loss(
                output.boundary_offsets, encode_boundaries(anchors, matched), positive, beta=beta
            ),
            "centre_offset": losses.offset_loss(
                output.centre_offsets, encode_centre_width(anchors, matched), positive, beta=beta
            ),
            "proposal_class": losses.focal_loss(output.class_logits, class_targets),
        }

    def _refine(self, output: StageOutput, anchors: Tensor) -> Tensor:
        """The next stage's anchors, detached from the graph."""
        return refine(
            anchors,
            output.boundary_offsets.detach(),
            output.centre_offsets.detach(),
            num_steps=self.settings.num_steps,
        )

    def _predict_chunk(
        self, x: Tensor, step_scores: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Segments (B, p, 2), quality (B, p) and class scores (B, p, K) from p of the proposals (B, p, 2)."""
        refined, tiou_scores, class_scores = [], [], []
        for stage in self.stages:
            output = stage(x, step_scores, anchors)
            anchors = self._refine(output, anchors)
            refined.append(anchors)
            tiou_scores.append(output.tiou_logits.sigmoid())
            class_scores.append(output.class_logits.sigmoid())
        segments = torch.stack(refined).mean(0)
        quality = torch.stack(tiou_scores).mean(0).prod(-1)  # tIoU class x tIoU, as ETAD
        return segments, quality, torch.stack(class_scores).mean(0)
