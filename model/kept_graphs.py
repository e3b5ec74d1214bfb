"""The graphs of the kept clips, held from the forward pass until the backward pass needs them.

Sampled encoding (model/encode.py) runs the kept clips once without a graph and again in the backward pass.
Where memory allows, the graph of the first run is kept instead: of a reversible encoder the states of its
stages. As in model/encode_backward.py the graphs are of detached aliases of the parameters, so that each
parameter's gradient is accumulated, and reduced among ranks, once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .encode_backward import Aliases, backward
from .recompute import autocast_dtype, autocast_without_cache


class KeptGraphs:
    """Features of so many chunks of clips, each with its graph."""

    def __init__(self, encoder: nn.Module, num_chunks: int) -> None:
        self.encoder, self.aliases = encoder, Aliases(encoder, num_chunks)
        self.features: list[Tensor] = []

    def encode(self, clips: Tensor) -> Tensor:
        """The features of a chunk (n, C, L, H, W), without a graph; the graph is kept here."""
        kind = clips.device.type
        with torch.enable_grad(), autocast_without_cache(kind, autocast_dtype(kind)):
            features: Tensor = self.aliases.call(self.encoder, clips)
        self.features.append(features)
        return features.detach()

    def gradients(self, feature_gradients: Iterable[Tensor]) -> list[Tensor]:
        """The gradient of each trainable parameter, from those of the chunks' features; frees the graphs."""
        for gradient in feature_gradients:
            self.aliases.call(backward, self.features.pop(0), gradient)
        return list(self.aliases.sums)
