"""What every detector is: features of videos in; a loss in training, scored segments in prediction.

`model/detector/build.py` chooses one by `detector.kind`. A further one is a module of this form.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from settings_group import SettingsGroup

from ..deterministic import interpolate_steps
from .ground_truth import PaddedActions, pad_actions

MIN_STEPS = 4  # of a window; detector.num_steps is at least so large


@dataclass(frozen=True)
class Prediction:
    """Scored segments of B videos; float32, on the features' device, without a graph."""

    segments: Tensor  # (B, P, 2) start and end in steps, 0 <= start < end <= T
    quality: Tensor  # (B, P) in [0, 1]: how well the segment fits some action
    class_scores: Tensor  # (B, P, K) in [0, 1]: tIoU with an action of that class; several may be high
    boundary: Tensor  # (B, 2, T) in [0, 1]: start, end at each step
    # Where a video fills only the first steps of its window: how many, and which of its P segments count.
    num_steps: tuple[int, ...] | None = None
    counts: Tensor | None = None  # (B, P) bool


def valid_steps(video_shares: Tensor, num_steps: int) -> tuple[int, ...]:
    """How many of the steps of each window its video reaches; video_shares: (B,) in (0, 1].

    At least four, the fewest that a detector may have: what is found in them is cut at the video's end.
    """
    return tuple(max(MIN_STEPS, math.ceil(share * num_steps - 1e-6)) for share in video_shares.tolist())


def hold_last(features: Tensor, video_shares: Tensor) -> Tensor:
    """Features (B, D, T') whose last one within each video stands for all behind it.

    So what lies behind the video's end is not mixed in where features are interpolated. A feature is within
    the video if its middle is.
    """
    t, held = features.shape[2], []
    for own, share in zip(features, video_shares.tolist(), strict=True):
        count = max(1, math.ceil(share * t - 0.5 - 1e-6))
        held.append(torch.cat([own[:, :count], own[:, count - 1 : count].expand(-1, t - count)], 1))
    return torch.stack(held)


def _stacked(parts: Sequence[Tensor], dim: int, size: int) -> Tensor:
    """Tensors (1, ...) that differ along `dim` as one, zeros behind each up to `size`."""
    padded = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = size - part.shape[dim]
        padded.append(torch.cat([part, part.new_zeros(shape)], dim))
    return torch.cat(padded)


class Detector(nn.Module, ABC):
    """Features of videos -> their actions. Weights may be bfloat16; results are float32."""

    settings: SettingsGroup  # of the detector, or of its kind
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

    def masked_loss(
        self,
        features: Tensor,
        gt_segments: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        video_shares: Tensor,
        *,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` of videos that fill only the first share (B,) of their window; the rest is never seen.

        Each video is cut to its own steps, as if its window ended there: the mean over the videos. One by
        one, however many are short, because ZeRO-3 wants as many calls on every rank.
        """
        losses, parts = [], []
        cuts = zip(self._cut(features, video_shares), gt_segments, gt_labels, strict=True)
        for (detector, own), segments, labels in cuts:
            segments = segments.clamp(max=detector.num_steps)
            loss, of_video = detector.loss(own, [segments], [labels], generator=generator)
            losses.append(loss)
            parts.append(of_video)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return torch.stack(losses).mean(), means

    def detect(self, features: Tensor, video_shares: Tensor | None) -> Prediction:
        """`predict`, or `masked_predict` where shares are given."""
        if video_shares is None:
            return self.predict(features)
        return self.masked_predict(features, video_shares)

    @torch.no_grad()
    def masked_predict(self, features: Tensor, video_shares: Tensor) -> Prediction:
        """`predict` of videos that fill only the first share (B,) of their window."""
        parts = [detector.predict(own) for detector, own in self._cut(features, video_shares)]
        most = max(part.segments.shape[1] for part in parts)
        counts = torch.zeros(len(parts), most, dtype=torch.bool, device=features.device)
        for i, part in enumerate(parts):
            counts[i, : part.segments.shape[1]] = True
        return Prediction(
            segments=_stacked([part.segments for part in parts], 1, most),
            quality=_stacked([part.quality for part in parts], 1, most),
            class_scores=_stacked([part.class_scores for part in parts], 1, most),
            boundary=_stacked([part.boundary for part in parts], 2, self.num_steps),
            num_steps=tuple(part.boundary.shape[2] for part in parts),
            counts=counts,
        )

    def _cut(self, features: Tensor, video_shares: Tensor) -> Iterator[tuple[Self, Tensor]]:
        """For each video a detector of as many steps as are its own, and its features (1, D, steps)."""
        held = hold_last(features, video_shares)
        whole = self.features_in_steps(held)
        for i, num_steps in enumerate(valid_steps(video_shares, self.num_steps)):
            yield self._with_steps(num_steps), whole[i : i + 1, :, :num_steps]

    def _with_steps(self, num_steps: int) -> Self:
        """This detector, with the same parameters, for windows of fewer steps."""
        other = copy.copy(self)  # of the attributes alone: submodules are shared
        other.num_steps = num_steps
        other.settings = self.settings.model_copy(update={"num_steps": num_steps})
        return other

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
