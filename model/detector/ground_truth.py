"""The annotated actions of a batch, checked and padded to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedActions:
    """Annotated actions of B videos, padded to the same number A >= 1; float32 steps inside [0, T]."""

    segments: Tensor  # (B, A, 2)
    labels: Tensor  # (B, A) int64
    mask: Tensor  # (B, A) bool, False where a video has fewer than A actions

    def to(self, device: torch.device) -> PaddedActions:
        """On another device, which is not waited for."""
        tensors = (self.segments, self.labels, self.mask)
        return PaddedActions(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def pad_actions(
    gt_segments: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    *,
    num_videos: int,
    num_steps: int,
    num_classes: int,
) -> PaddedActions:
    """Check the actions of each video and pad them to one number (at least 1), on the CPU.

    gt_segments: per video (A, 2) start and end in the T = num_steps steps, clipped to [0, T]; gt_labels: per
    video (A,). Raises ValueError naming the video whose segments or labels are wrong.
    """
    if len(gt_segments) != num_videos or len(gt_labels) != num_videos:
        raise ValueError(
            f"detector: {len(gt_segments)} lists of segments and {len(gt_labels)} of labels "
            f"for {num_videos} videos"
        )
    num_actions = max(1, max(len(labels) for labels in gt_labels))
    segments = torch.zeros(num_videos, num_actions, 2)
    labels = torch.zeros(num_videos, num_actions, dtype=torch.int64)
    mask = torch.zeros(num_videos, num_actions, dtype=torch.bool)
    for i, (of_video, labels_of_video) in enumerate(zip(gt_segments, gt_labels, strict=True)):
        count = len(labels_of_video)
        segments[i, :count] = _checked_segments(of_video, count, num_steps, where=f"video {i}")
        labels[i, :count] = _checked_labels(labels_of_video, num_classes, where=f"video {i}")
        mask[i, :count] = True
    return PaddedActions(segments, labels, mask)


def _checked_segments(segments: Tensor, count: int, num_steps: int, *, where: str) -> Tensor:
    segments = torch.as_tensor(segments).detach().float().cpu()
    if count == 0 and segments.numel() == 0:
        return segments.reshape(0, 2)
    if segments.shape != (count, 2):
        raise ValueError(
            f"{where}: gt_segments {tuple(segments.shape)} for {count} labels, want ({count}, 2)"
        )
    clipped = segments.clamp(0, num_steps)
    wrong = ~segments.isfinite().all(1) | (clipped[:, 1] <= clipped[:, 0])
    if wrong.any():
        start, end = segments[wrong][0].tolist()
        raise ValueError(
            f"{where}: gt segment ({start:g}, {end:g}), want start < end, some of it in 0 to {num_steps}"
        )
    return clipped


def _checked_labels(labels: Tensor, num_classes: int, *, where: str) -> Tensor:
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"{where}: gt_labels {labels.dtype} {tuple(labels.shape)}, want integers of shape (A,)"
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"{where}: gt label {int(labels.min())} to {int(labels.max())}, want 0 to {num_classes - 1}"
        )
    return labels.long()
