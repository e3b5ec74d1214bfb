"""ETAD's detector as released, `detector.kind: etad`: boundaries, and proposals refined in three stages.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023); weights of its authors fit
(tools/weights/names/etad.py). It knows no classes: an external classifier names them. What the detector of
proposals (../proposal_detector.py) does otherwise is a setting of `detector.etad`, off by default; see
docs/etad.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ...segments import clamp_segments, pairwise_tiou
from .. import losses
from ..cascade import score_all, total_loss
from ..detector import Detector, Prediction
from ..ground_truth import PaddedActions
from ..heads import StageOutput, StepHead
from ..proposals import MIN_WIDTH
from ..sampling import draw_proposals
from ..settings import DetectorSettings
from .heads import BoundaryHead, Stage
from .losses import boundary_loss, drawn_class_loss, drawn_tiou_loss
from .neck import Neck
from .shared_stage import SharedStage
from .targets import boundary_targets, matched_segments, offset_targets, refine, targets_at_ends, tiou_with

_DRAWS = 5  # uniform numbers of each proposal in a stage: tIoU class; tIoU below, between; start, end
_BOUNDARY = 0.5  # boundary target above which a proposal's end counts as near a true one


class Etad(Detector):
    """Neck, boundary head and cascade; see `loss` and `predict`."""

    settings: DetectorSettings

    def __init__(self, settings: DetectorSettings, *, num_features: int, num_classes: int):
        """num_features: D, channels of the features; num_classes: K."""
        super().__init__(num_steps=settings.num_steps, num_features=num_features, num_classes=num_classes)
        self.settings, self.proposal_ratio = settings, settings.proposal_ratio
        own, dim = settings.etad, settings.neck_dim
        self.neck = Neck(num_features, dim)
        self.boundary = BoundaryHead(dim, norm=own.norms)
        stage = SharedStage if own.origin == "opentad" else Stage
        self.stages = nn.ModuleList(stage(settings, num_classes) for _ in range(settings.num_stages))
        self.step_class = StepHead(dim, num_classes, prior=settings.class_prior) if own.class_scores else None
        # Bypasses the neck: an encoder trained from scratch then gets a class gradient from the first step.
        shortcut = nn.Conv1d(num_features, num_classes, 1, bias=False) if own.step_shortcut else None
        self.step_shortcut = shortcut

    def loss(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        *,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Detector.loss`; the generator draws the proposals, and those that count."""
        actions = self.padded_actions(features, gt_segments, gt_labels)
        anchors = draw_proposals(self.settings, self.proposal_ratio, actions, generator)
        draws = torch.rand(self.settings.num_stages, _DRAWS, *anchors.shape[:2], generator=generator)
        anchors, draws = (x.to(features.device, non_blocking=True) for x in (anchors, draws))
        actions = actions.to(features.device)
        x, step_logits = self._encode_steps(features)
        of_steps = self._step_losses(x, step_logits, actions).items()
        step_scores = None if step_logits is None else step_logits.sigmoid()
        of_stages = self._cascade_losses(x, step_scores, anchors, actions, draws)
        return total_loss(chain(of_steps, of_stages), self.settings.weights)

    def _step_losses(
        self, x: Tensor, step_logits: Tensor | None, actions: PaddedActions
    ) -> dict[str, Tensor]:
        parts = {"boundary": boundary_loss(self.boundary(x).sigmoid(), self._boundary_targets(actions))}
        if step_logits is not None:
            targets = losses.step_class_targets(
                actions.segments, actions.labels, actions.mask, self.num_steps, self.num_classes
            )
            weight = self.settings.step_class_positives
            parts["step_class"] = losses.weighted_bce(step_logits, targets, positive_weight=weight)
        return parts

    def _cascade_losses(
        self, x: Tensor, step_scores: Tensor | None, anchors: Tensor, actions: PaddedActions, draws: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the parts, stage by stage."""
        targets, matched = self._boundary_targets(actions), matched_segments(anchors, actions)
        for stage, threshold, draw in zip(self.stages, self.settings.regression_tiou, draws, strict=True):
            output = stage(x, step_scores, anchors)
            if self.settings.etad.matching == "each_stage":
                matched = matched_segments(anchors, actions)
            yield from self.stage_losses(output, anchors, matched, targets, threshold, draw).items()
            if step_scores is not None:
                yield "proposal_class", self._class_loss(output, anchors, actions)
            anchors = self.refine(output, anchors)

    def _class_loss(self, output: StageOutput, anchors: Tensor, actions: PaddedActions) -> Tensor:
        """Of the class scores of proposals, which may be of several actions."""
        tiou = pairwise_tiou(anchors, actions.segments) * actions.mask[:, None]  # (B, P, A)
        targets = losses.proposal_class_targets(
            tiou, actions.labels, actions.mask, self.num_classes, threshold=self.settings.class_tiou
        )
        return losses.focal_loss(output.class_logits, targets)

    def _boundary_targets(self, actions: PaddedActions) -> Tensor:
        return boundary_targets(actions, self.num_steps, radius=self.settings.etad.boundary_radius)

    def stage_losses(
        self,
        output: StageOutput,
        anchors: Tensor,
        matched: Tensor,
        targets: Tensor,
        threshold: float,
        draws: Tensor,
    ) -> dict[str, Tensor]:
        """The parts of one stage without their weights.

        matched: (B, P, 2) the action of each anchor; targets: (B, 2, T) of boundaries; threshold: tIoU above
        which offsets are trained; draws: (5, B, P) uniform in [0, 1).
        """
        settings, beta = self.settings, self.settings.etad.offset_beta
        tiou = tiou_with(matched, anchors)
        positive = (tiou > threshold).to(tiou.dtype)
        near = targets_at_ends(targets, anchors)
        of_ends, of_centre = offset_targets(anchors, matched, self.num_steps)
        hits, value = output.tiou_logits.unbind(-1)
        ends = [
            self._hit_loss(output.boundary_logits[..., i], near[..., i], draws[3 + i], _BOUNDARY)
            for i in (0, 1)
        ]
        return {
            "tiou_class": self._hit_loss(hits, tiou, draws[0], settings.confident_tiou),
            "tiou_regression": (
                losses.tiou_regression_loss(value, tiou)
                if settings.etad.balancing == "weighted"
                else drawn_tiou_loss(value.sigmoid(), tiou, (draws[1], draws[2]))
            ),
            "proposal_boundary": ends[0] + ends[1],
            "boundary_offset": losses.offset_loss(output.boundary_offsets, of_ends, positive, beta=beta),
            "centre_offset": losses.offset_loss(output.centre_offsets, of_centre, positive, beta=beta),
        }

    def _hit_loss(self, logits: Tensor, targets: Tensor, draws: Tensor, threshold: float) -> Tensor:
        """Whether the targets are above the threshold; all (B, P)."""
        if self.settings.etad.balancing == "weighted":
            return losses.tiou_class_loss(logits, targets, threshold=threshold)
        return drawn_class_loss(logits.sigmoid(), targets, draws, threshold=threshold)

    def refine(self, output: StageOutput, anchors: Tensor) -> Tensor:
        """The next stage's anchors, detached from the graph."""
        return refine(anchors, output.boundary_offsets.detach(), output.centre_offsets.detach())

    @torch.no_grad()
    def predict(self, features: Tensor) -> Prediction:
        """Refine and score all T (T + 1) / 2 proposals of every video: features (B, D, T') -> Prediction.

        A proposal that ends before it starts has quality 0; one that leaves the window is cut.
        """
        x, step_logits = self._encode_steps(features)
        segments, quality, class_scores = score_all(
            self.stages,
            self.refine,
            x,
            None if step_logits is None else step_logits.sigmoid(),
            num_steps=self.num_steps,
            at_once=self.settings.predict_proposals,
        )
        inside = segments.clamp(0, self.num_steps)
        quality = quality * (inside[..., 1] > inside[..., 0])
        if step_logits is None:
            class_scores = quality.new_ones(*quality.shape, self.num_classes)
        segments = clamp_segments(segments, limit=self.num_steps, min_width=MIN_WIDTH)
        return Prediction(segments, quality, class_scores, self.boundary(x).sigmoid())

    def _encode_steps(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The neck's output (B, neck_dim, T), and the class logits of each step (B, K, T) if there are any.

        features: (B, D, T'); they are checked, cast to the weights' dtype and interpolated to T.
        """
        features = self.features_in_steps(features)
        x = self.neck(features)
        if self.step_class is None:
            return x, None
        logits = self.step_class(x)
        return x, logits if self.step_shortcut is None else logits + self.step_shortcut(features).float()
