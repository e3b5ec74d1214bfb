"""ActionFormer as a detector, `detector.kind: actionformer`: one stage, without proposals or anchors.

Zhang et al., "ActionFormer: Localizing Moments of Actions with Transformers" (ECCV 2022), as its authors and
OpenTAD release it: weights of both fit (tools/weights/names/actionformer.py). Each point of a pyramid scores
the classes and measures how far away the start and the end of its action are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...segments import at_least_float32, clamp_segments
from ..detector import Detector, Prediction, hold_last, valid_steps
from ..ground_truth import PaddedActions
from ..heads import prior_bias
from ..losses import step_class_targets
from ..settings import DetectorSettings
from .head import LevelHead, LevelScales
from .losses import RunningNormaliser, distance_iou_losses, focal_losses, smooth_labels
from .points import assign_actions, make_points
from .pyramid import Pyramid
from .settings import ActionFormerSettings

_MIN_LENGTH = 1e-3  # steps; a shorter segment scores 0
_STEP_POSITIVES = 5.0  # weight of the classes that are there at a step against the others


class ActionFormer(Detector):
    """Pyramid and two heads; see `loss` and `predict`."""

    settings: ActionFormerSettings

    def __init__(self, settings: DetectorSettings, *, num_features: int, num_classes: int):
        """num_features: D, channels of the features; num_classes: K."""
        super().__init__(num_steps=settings.num_steps, num_features=num_features, num_classes=num_classes)
        self.settings = own = settings.actionformer
        self.pyramid = Pyramid(num_features, settings.num_steps, own)
        self.classes, self.distances = (
            LevelHead(
                own.embed_dim,
                own.head_dim,
                outputs,
                num_layers=own.head_layers,
                opentad=own.origin == "opentad",
            )
            for outputs in (num_classes, 2)
        )
        self.scales = LevelScales(own.num_levels)
        # Bypasses the pyramid, as in the detector of proposals, and counts in training alone.
        self.step_class = nn.Conv1d(num_features, num_classes, 1) if own.step_class_weight else None
        self.normaliser = RunningNormaliser(own.normaliser_start, own.normaliser_momentum)
        prior_bias(self.classes.last, own.class_prior)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of all P points of all levels, first to last.

        features: (B, D, T), T a multiple of 2^(levels - 1); mask: (B, 1, T) bool. Returns class logits
        (B, P, K), distances (B, P, 2) to start and end in strides of the point, and the mask (B, P).
        """
        maps, masks = self.pyramid(features, mask)
        logits = self.classes(maps, masks)
        distances = self.scales(self.distances(maps, masks))
        return torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(masks, 2)[:, 0]

    def loss(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        *,
        generator: torch.Generator,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Detector.loss`; nothing is drawn from the generator. mask: (B, T) bool, the steps that are of
        the video; None: all."""
        features, mask = self._prepared(features, mask)
        actions = self.padded_actions(features, gt_segments, gt_labels).to(features.device)
        logits, distances, valid = self(features, mask)
        parts = self.losses(logits, distances, valid, actions, self.num_steps)
        if self.step_class is not None:
            parts["step_class"] = self._step_loss(self.step_class(features), mask, actions)
        return reduce(torch.add, parts.values()), {name: value.detach() for name, value in parts.items()}

    def _step_loss(self, logits: Tensor, mask: Tensor, actions: PaddedActions) -> Tensor:
        """The weighted loss of the classes of the steps: logits (B, K, T), mask (B, 1, T)."""
        logits = at_least_float32(logits)
        targets = step_class_targets(
            actions.segments, actions.labels, actions.mask, logits.shape[2], self.num_classes
        )
        weight = torch.full((), _STEP_POSITIVES, device=logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
        mean = (losses * mask).sum() / mask.sum().clamp(min=1)
        return mean * self.settings.step_class_weight

    def losses(
        self, logits: Tensor, distances: Tensor, mask: Tensor, actions: PaddedActions, num_steps: int
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss, from what `forward` returned for T = num_steps steps."""
        own = self.settings
        points = make_points(num_steps, own, device=logits.device, dtype=actions.segments.dtype)
        classes, targets = assign_actions(points, actions, self.num_classes, centre_radius=own.centre_radius)
        matched = (classes.amax(2) > 0) & mask
        normaliser = self.normaliser(matched.sum())
        of_class = focal_losses(logits, smooth_labels(classes, own.label_smoothing).to(logits.dtype))
        targets = torch.where(matched[..., None], targets, 1.0).to(distances.dtype)  # finite everywhere
        of_distance = distance_iou_losses(distances, targets)
        return {
            "class": torch.where(mask[..., None], of_class, 0.0).sum() / normaliser,
            "distance": torch.where(matched, of_distance, 0.0).sum() * own.distance_weight / normaliser,
        }

    @torch.no_grad()
    def predict(self, features: Tensor, mask: Tensor | None = None) -> Prediction:
        """One segment per point: features (B, D, T'), mask (B, T) bool or None -> Prediction.

        The quality is the best class score, for external labels; a boundary score it has none: 1 everywhere.
        """
        features, mask = self._prepared(features, mask)
        num_steps = features.shape[2]
        logits, distances, mask = self(features, mask)
        segments = make_points(num_steps, self.settings, device=logits.device).segments(distances)
        segments = segments.clamp(0, num_steps)
        counts = mask & (segments[..., 1] - segments[..., 0] > _MIN_LENGTH)
        scores = logits.sigmoid() * counts[..., None]
        return Prediction(
            segments=clamp_segments(segments, limit=num_steps, min_width=_MIN_LENGTH),
            quality=scores.amax(2),
            class_scores=scores,
            boundary=scores.new_ones(len(scores), 2, num_steps),
        )

    def masked_loss(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        video_shares: Tensor,
        *,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Detector.masked_loss`; the mask goes through pyramid and heads, all videos at once."""
        features, mask = self._masked(features, video_shares)
        return self.loss(features, gt_segments, gt_labels, generator=generator, mask=mask)

    @torch.no_grad()
    def masked_predict(self, features: Tensor, video_shares: Tensor) -> Prediction:
        """See `Detector.masked_predict`; one segment per point, which scores 0 if it is not in the video."""
        features, mask = self._masked(features, video_shares)
        prediction = self.predict(features, mask)
        num_steps = valid_steps(video_shares, self.num_steps)
        ends = torch.tensor(num_steps, device=features.device)[:, None]
        inside = prediction.segments[..., 0] < ends
        return replace(
            prediction,
            num_steps=num_steps,
            quality=prediction.quality * inside,
            class_scores=prediction.class_scores * inside[..., None],
        )

    def _masked(self, features: Tensor, video_shares: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D, T), zero behind each video's end, and the mask (B, T) of its steps."""
        features = self.features_in_steps(hold_last(features, video_shares))
        ends = torch.tensor(valid_steps(video_shares, self.num_steps), device=features.device)
        mask = torch.arange(self.num_steps, device=features.device) < ends[:, None]
        return features * mask[:, None], mask

    def _prepared(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (B, D, T) in the weights' dtype, and a mask (B, 1, T). Features are interpolated to
        num_steps; with a mask they must have as many."""
        features = self.features_in_steps(features)
        if mask is not None and mask.shape != (len(features), self.num_steps):
            want = (len(features), self.num_steps)
            raise ValueError(f"detector: mask {tuple(mask.shape)}, want {want}: one entry per step")
        if mask is None:
            mask = torch.ones(len(features), self.num_steps, dtype=torch.bool, device=features.device)
        return features, mask[:, None]
