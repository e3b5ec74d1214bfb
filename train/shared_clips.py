"""Encodes a clip once where several windows of its video show it: half of them, if windows overlap by half.

In evaluation alone: features there depend on nothing but the pixels of their clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.network import Network
from pipeline.batch import Batch

ClipName = tuple[str, bytes] | None  # a video and the frames that are shown of it; None: black


def names_of_clips(batch: Batch) -> list[ClipName]:
    """Of the B * N clips of a batch of evaluation, window by window: equal names, equal pixels."""
    assert batch.frames is not None, "of a batch of clips in evaluation"
    names: list[ClipName] = []
    for key, padding, frames in zip(batch.keys, batch.padding, batch.frames.numpy(), strict=True):
        names += [None if padding else (key, shown.tobytes()) for shown in frames]
    return names


class SharedClips:
    """Features of batches that follow each other, as a loader makes them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._last: dict[ClipName, Tensor] = {}  # (D, t) of each clip of the last batch

    def features(self, batch: Batch) -> Tensor:
        """(B, D, N * t) as `Network.encode` has them, without a graph; only what is new is encoded."""
        names, new = names_of_clips(batch), dict[ClipName, int]()  # new: the first clip of the name
        for number, name in enumerate(names):
            if name not in self._last:
                new.setdefault(name, number)
        found = dict(self._last)
        if new:
            encoded = self.network.encode_some(batch.inputs, torch.tensor([*new.values()]))
            found.update(zip(new, encoded, strict=True))
        self._last = {name: found[name] for name in names}
        features = torch.stack([found[name] for name in names])  # (B * N, D, t)
        return torch.unflatten(features, 0, (len(batch), -1)).transpose(1, 2).flatten(2)
