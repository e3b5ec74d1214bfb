"""The networks of bench-coverage: of other libraries, random weights, small inputs, one of each family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tools.benchmarks.libraries import build_network
from tools.benchmarks.networks_others import HUGGING_FACE, TORCHVISION
from tools.benchmarks.networks_timm import TIMM


@dataclass(frozen=True)
class ForeignNetwork:
    """One network: how to build it, and the shape of its input."""

    name: str  # as in "timm:resnet18"
    family: str
    shape: tuple[int, ...]  # of the input, with 2 in front as n
    options: dict[str, Any] = field(default_factory=dict)  # see build_network

    def build(self) -> nn.Module:
        """With weights of a fixed seed, in training mode."""
        return build_network(self.name, self.options)

    def input(self, seed: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Random pixels of the network's shape, or of another: (2, *shape)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(2, *(self.shape if shape is None else shape), generator=generator)


def known_networks() -> list[ForeignNetwork]:
    """All of them, library by library."""
    return [
        *(ForeignNetwork(f"timm:{name}", family, (3, size, size), o) for family, name, size, o in TIMM),
        *(ForeignNetwork(f"torchvision:{name}", family, shape, o) for family, name, shape, o in TORCHVISION),
        *(ForeignNetwork(f"hf:{name}", family, shape, o) for family, name, shape, o in HUGGING_FACE),
    ]
