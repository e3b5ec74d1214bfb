"""A head of ActionFormer: the same convolutions over every level of the pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...segments import at_least_float32
from .blocks import Convolution


class LevelHead(nn.Module):
    """Maps (B, inputs, T_l) of all levels -> (B, T_l, outputs) of each, float32 or wider."""

    def __init__(self, inputs: int, width: int, outputs: int, *, num_layers: int, opentad: bool):
        super().__init__()
        widths = [inputs] + [width] * num_layers
        self.layers = nn.ModuleList(Convolution(before, width, opentad=opentad) for before in widths[:-1])
        self.last = nn.Conv1d(widths[-1], outputs, 3, padding=1)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        outputs = []
        for x, mask in zip(maps, masks, strict=True):
            for layer in self.layers:
                x = layer(x, mask)
            outputs.append(at_least_float32(self.last(x) * mask).transpose(1, 2))
        return outputs


class LevelScales(nn.Module):
    """A learned factor per level, then no negative: distances cannot be."""

    def __init__(self, num_levels: int):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(num_levels))

    def forward(self, distances: list[Tensor]) -> list[Tensor]:
        factors = at_least_float32(self.factors)
        return [(x * factor).relu() for x, factor in zip(distances, factors, strict=True)]
