"""The detector of proposals, `detector.kind: proposals`: scores and refines all segments of a dense map.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023): a neck with two LSTMs, a
boundary head, and three stages that refine and score proposals drawn from the dense map. We depart: two
class heads, so no external classifier is needed; balancing by weights, not by drawing; exact RoI bins;
sampling that may follow the annotated actions. ETAD's own is in etad/; docs/etad.md names all departures,
with their effects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..segments import pairwise_tiou
from . import losses
from .cascade import score_all, total_loss
from .detector import Detector, Prediction
from .ground_truth import PaddedActions
from .heads import ProposalStage, StageOutput, StepHead
from .neck import Neck
from .proposals import encode_boundaries, encode_centre_width, refine
from .sampling import draw_proposals
from .settings import DetectorSettings


class ProposalDetector(Detector):
    """Neck, step heads and cascade; see `loss` and `predict`."""

    settings: DetectorSettings

    def __init__(self, settings: DetectorSettings, *, num_features: int, num_classes: int):
        """num_features: D, channels of the features; num_classes: K."""
        super().__init__(num_steps=settings.num_steps, num_features=num_features, num_classes=num_classes)
        self.settings, self.proposal_ratio = settings, settings.proposal_ratio
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
        """See `Detector.loss`; the generator draws the proposals."""
        actions = self.padded_actions(features, gt_segments, gt_labels)
        anchors = draw_proposals(self.settings, self.proposal_ratio, actions, generator)
        anchors = anchors.to(features.device, non_blocking=True)
        actions = actions.to(features.device)
        x, step_logits = self._encode_steps(features)
        of_steps = self._step_losses(x, step_logits, actions).items()
        of_stages = self._cascade_losses(x, step_logits, anchors, actions)
        return total_loss(chain(of_steps, of_stages), self.settings.weights)

    def _cascade_losses(
        self, x: Tensor, step_logits: Tensor, anchors: Tensor, actions: PaddedActions
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the parts, stage by stage."""
        for stage, threshold in zip(self.stages, self.settings.regression_tiou, strict=True):
            output = stage(x, step_logits.sigmoid(), anchors)
            yield from self._stage_losses(output, anchors, actions, threshold).items()
            anchors = self._refine(output, anchors)

    @torch.no_grad()
    def predict(self, features: Tensor) -> Prediction:
        """Refine and score all T (T + 1) / 2 proposals of every video: features (B, D, T') -> Prediction."""
        x, step_logits = self._encode_steps(features)
        segments, quality, class_scores = score_all(
            self.stages,
            self._refine,
            x,
            step_logits.sigmoid(),
            num_steps=self.settings.num_steps,
            at_once=self.settings.predict_proposals,
        )
        return Prediction(segments, quality, class_scores, self.boundary(x).sigmoid())

    def _encode_steps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The neck's output (B, neck_dim, T) and the class logits of each step (B, K, T), float32.

        features: (B, D, T'); they are checked, cast to the weights' dtype and interpolated to T.
        """
        features = self.features_in_steps(features)
        x = self.neck(features)
        if self.settings.shortcut_norm:
            features = F.layer_norm(features.transpose(1, 2), features.shape[1:2]).transpose(1, 2)
        return x, self.step_class(x) + self.step_shortcut(features).float()

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
