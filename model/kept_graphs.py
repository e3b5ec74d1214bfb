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

from .encode_backward import trainable_parameters
from .gradient_sums import GradientSums


class _Backward(nn.Module):
    """The backward of one chunk, for `functional_call`: a reversible stage runs its branches again."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, gradient: Tensor) -> None:
        torch.autograd.backward(features, gradient.to(features.dtype))


class KeptGraphs:
    """Features of chunks of clips, each with its graph."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.aliases = {name: p.detach().requires_grad_() for name, p in trainable_parameters(encoder)}
        self.features: list[Tensor] = []

    def encode(self, clips: Tensor) -> Tensor:
        """The features of a chunk (n, C, L, H, W), without a graph; the graph is kept here."""
        kind = clips.device.type
        # Without the cache: casted weights carry a graph, which the backward of one chunk frees.
        autocast = torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False)
        with torch.enable_grad(), autocast:
            features: Tensor = torch.func.functional_call(self.encoder, self.aliases, (clips,))
        self.features.append(features)
        return features.detach()

    def gradients(self, feature_gradients: Iterable[Tensor]) -> list[Tensor]:
        """The gradient of each trainable parameter, from those of the chunks' features; frees the graphs."""
        sums = GradientSums(list(self.aliases.values()))
        backward = _Backward(self.encoder)
        aliases = {f"encoder.{name}": alias for name, alias in self.aliases.items()}
        features = self.features[::-1]
        self.features.clear()
        for gradient in feature_gradients:
            torch.func.functional_call(backward, aliases, (features.pop(), gradient))
            sums.add_low_precision()
        return list(sums)
