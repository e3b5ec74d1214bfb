"""Features of all clips, encoded chunk by chunk into one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .clip_chunks import chunks_on, select_clips


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


def encode_into(
    features: FeatureBuffer,
    encoder: Callable[[Tensor], Tensor],
    clips: Tensor,
    chunks: Sequence[Tensor],
    device: torch.device,
) -> None:
    """Encode chunks of the clips, each given by the indices of its clips."""
    selected = (select_clips(clips, indices) for indices in chunks)
    for indices, chunk in zip(chunks, chunks_on(device, selected), strict=True):
        features.write(indices, encoder(chunk))


def device_of(encoder: nn.Module, clips: Tensor) -> torch.device:
    """Where the encoder computes: where its parameters are, or without any, where the clips are."""
    return next((p.device for p in encoder.parameters()), clips.device)
