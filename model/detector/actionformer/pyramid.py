"""The pyramid: the features of a video at T steps, T / 2, T / 4 and so on, each by attention from the last.

After ActionFormer (Zhang et al., ECCV 2022), with its level norms; the sine table is that of Vaswani et al.,
"Attention Is All You Need" (NeurIPS 2017).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import OPENTAD_EPSILON, Block, ChannelNorm, Convolution
from .settings import ActionFormerSettings


def sine_table(num_steps: int, channels: int) -> Tensor:
    """(1, channels, num_steps) float32: sines in even channels, cosines in odd, wavelengths up to 2 pi x
    10,000 steps; divided by the root of the channels."""
    channel = torch.arange(channels, dtype=torch.float64)
    rate = torch.pow(10_000.0, -2 * (channel // 2) / channels)
    angles = torch.arange(num_steps, dtype=torch.float64) * rate[:, None]
    table = torch.where((channel % 2 == 0)[:, None], angles.sin(), angles.cos())
    return (table.float() / math.sqrt(channels))[None]


def level_norm(settings: ActionFormerSettings) -> ChannelNorm:
    """The norm of a level."""
    if settings.origin == "opentad":
        return ChannelNorm(settings.embed_dim, OPENTAD_EPSILON)
    return ChannelNorm(settings.embed_dim)


class Pyramid(nn.Module):
    """(B, D, T) and a mask -> the maps (B, embed_dim, T / 2^l) and masks (B, 1, T / 2^l) of all levels l."""

    def __init__(self, num_features: int, num_steps: int, settings: ActionFormerSettings):
        """num_steps: the T that positions are stated for; the table is stretched to a larger one."""
        super().__init__()
        channels, opentad = settings.embed_dim, settings.origin == "opentad"

        def block(level: int) -> Block:
            return Block(
                channels,
                settings.num_heads,
                stride=2 if level else 1,
                window=settings.windows[level],
                drop_path=settings.drop_path,
            )

        self.dropout = nn.Dropout1d(settings.input_dropout)  # of whole channels
        inputs = [num_features] + [channels] * (settings.embed_layers - 1)
        self.embed = nn.ModuleList(Convolution(width, channels, opentad=opentad) for width in inputs)
        self.stem = nn.ModuleList(block(0) for _ in range(settings.stem_layers))
        self.branches = nn.ModuleList(block(level) for level in range(1, settings.num_levels))
        self.norms = nn.ModuleList(level_norm(settings) for _ in range(settings.num_levels))
        # A plain attribute, not a buffer: it stays float32 when the engine casts the module to bf16.
        self.positions = sine_table(num_steps, channels) if settings.position_embedding else None

    def forward(self, features: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """mask: (B, 1, T). T: a multiple of 2^(levels - 1)."""
        x = self._embedded(features, mask)
        for block in self.stem:
            x = block(x, mask)
        maps, masks = [x], [mask]
        for block in self.branches:
            masks.append(masks[-1][..., ::2])
            maps.append(block(maps[-1], masks[-1]))
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)], masks

    def _embedded(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, embed_dim, T)."""
        x = self.dropout(x)
        for convolution in self.embed:
            x = convolution(x, mask)
        if self.positions is not None:
            table = self.positions.to(x.device, non_blocking=True)
            if x.shape[2] > table.shape[2]:
                table = F.interpolate(table, x.shape[2], mode="linear")
            x = x + table[..., : x.shape[2]].to(x.dtype) * mask
        return x
