"""Clips of all videos in one row, taken a chunk at a time, and the features that come of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class FeatureBuffer:
    """The features of all clips, written chunk by chunk; allocated when the first chunk shows their shape."""

    num_clips: int
    tensor: Tensor | None = None

    def write(self, indices: Tensor, features: Tensor) -> None:
        if features.ndim != 3 or len(features) != len(indices):
            want = f"({len(indices)}, D, t): one row of features per clip"
            raise ValueError(f"encoder: got features of shape {tuple(features.shape)}, want {want}")
        if self.tensor is None:
            self.tensor = features.new_empty(self.num_clips, *features.shape[1:])
        self.tensor.index_copy_(0, indices.to(features.device, non_blocking=True), features)

    def complete(self) -> Tensor:
        """(n, D, t), n = num_clips."""
        assert self.tensor is not None, "no chunk was encoded"
        return self.tensor


def select_clips(clips: Tensor, indices: Tensor) -> Tensor:
    """The clips of these rising indices; neighbours are a view, so keeping them for the backward is free."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):
        return clips[first : last + 1]
    return clips.index_select(0, indices.to(clips.device, non_blocking=True))
