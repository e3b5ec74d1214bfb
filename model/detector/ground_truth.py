"""The true actions of a batch, checked and padded to one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """True actions of B videos, padded to the same number A >= 1; float32 steps inside [0, T]."""

    segments: Tensor  # (B, A, 2)
    labels: Tensor  # (B, A) int64
    mask: Tensor  # (B, A) bool, False where a video has fewer than A actions

    def to(self, device: torch.device) -> Truth:
        return Truth(self.segments.to(device), self.labels.to(device), self.mask.to(device))


def pack_truth(
    gt_segments: Sequence[Tensor], gt_labels: Sequence[Tensor], num_steps: int, num_classes: int, batch: int
) -> Truth:
    """Check the truth of each video and pad it to one number of actions (at least 1), on the CPU."""
    if len(gt_segments) != batch or len(gt_labels) != batch:
        raise ValueError(
            f"detector: {len(gt_segments)} lists of segments, {len(gt_labels)} of labels for {batch} videos"
        )
    most = max(1, max(len(labels) for labels in gt_labels))
    segments = torch.zeros(batch, most, 2)
    labels = torch.zeros(batch, most, dtype=torch.int64)
    mask = torch.zeros(batch, most, dtype=torch.bool)
    for i, (some_segments, some_labels) in enumerate(zip(gt_segments, gt_labels, strict=True)):
        count = len(some_labels)
        segments[i, :count] = _checked_segments(some_segments, count, num_steps, where=f"video {i}")
        labels[i, :count] = _checked_labels(some_labels, num_classes, where=f"video {i}")
        mask[i, :count] = True
    return Truth(segments, labels, mask)


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
