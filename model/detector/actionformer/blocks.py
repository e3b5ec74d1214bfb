"""One block of the pyramid: masked attention and a small network on each step, both added to what came in.

Zhang et al., "ActionFormer: Localizing Moments of Actions with Transformers" (ECCV 2022). All maps are
(B, C, T); a mask is (B, 1, T) bool, and what it excludes is 0 after every convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.drop_path import DropPath
from .attention import attend

_SCALE = 1e-4  # what a block adds is multiplied by it at first
_EPSILON, OPENTAD_EPSILON = 1e-5, 1e-6  # of norms; OpenTAD's outside the blocks


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each step: (B, C, T) -> the same."""

    def __init__(self, channels: int, epsilon: float = _EPSILON):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.transpose(1, 2)
        normed = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.epsilon)
        return normed.transpose(1, 2)


class Convolution(nn.Module):
    """A convolution of 3 steps, a norm, a ReLU: (B, inputs, T) -> (B, outputs, T).

    opentad: the form of OpenTAD, in which padding is 0 afterwards; in the authors' it is the ReLU of the
    norm's bias, as they set it to 0 before the norm.
    """

    def __init__(self, inputs: int, outputs: int, *, opentad: bool):
        super().__init__()
        self.opentad = opentad
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = ChannelNorm(outputs, OPENTAD_EPSILON if opentad else _EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.conv(x)
        y: Tensor = self.norm(x).relu() * mask if self.opentad else self.norm(x * mask).relu()
        return y


class ScaledDropPath(nn.Module):
    """The last step of a branch: a learned factor per channel, and now and then none of it."""

    def __init__(self, channels: int, rate: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1), _SCALE))
        self.drop = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.drop(self.scale * x)
        return dropped


class Attention(nn.Module):
    """Attention whose queries, keys and values are convolved per channel first; stride 2 halves the steps."""

    def __init__(self, channels: int, num_heads: int, *, stride: int, window: int):
        super().__init__()
        self.num_heads, self.stride, self.window = num_heads, stride, window

        def convolution() -> nn.Conv1d:
            return nn.Conv1d(channels, channels, 3, stride, 1, groups=channels, bias=False)

        names = ("query", "key", "value")
        self.convs = nn.ModuleDict({name: convolution() for name in names})
        self.norms = nn.ModuleDict({name: ChannelNorm(channels) for name in names})
        self.maps = nn.ModuleDict({name: nn.Conv1d(channels, channels, 1) for name in names})
        self.output = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, C, T), mask: (B, 1, T / stride). Returns (B, C, T / stride)."""
        queries, keys, values = (self._heads(name, x, mask) for name in self.convs)
        attended = attend(queries, keys, values, mask[:, 0], window=self.window)
        y: Tensor = self.output(attended.transpose(2, 3).flatten(1, 2)) * mask
        return y

    def _heads(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        """The queries, keys or values: (B, heads, T / stride, c)."""
        mapped = self.maps[name](self.norms[name](self.convs[name](x) * mask))
        return torch.unflatten(mapped, 1, (self.num_heads, -1)).transpose(2, 3)


class Block(nn.Module):
    """(B, C, T) -> (B, C, T / stride): attention, then two layers on each step."""

    def __init__(self, channels: int, num_heads: int, *, stride: int, window: int, drop_path: float):
        super().__init__()
        self.stride = stride
        self.attention_norm = ChannelNorm(channels)
        self.attention = Attention(channels, num_heads, stride=stride, window=window)
        self.attention_end = ScaledDropPath(channels, drop_path)
        self.mlp_norm = ChannelNorm(channels)
        self.mlp = nn.Sequential(
            nn.Conv1d(channels, 4 * channels, 1), nn.GELU(), nn.Conv1d(4 * channels, channels, 1)
        )
        self.mlp_end = ScaledDropPath(channels, drop_path)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: of the output."""
        skip = x if self.stride == 1 else F.max_pool1d(x, self.stride + 1, self.stride, self.stride // 2)
        x = skip * mask + self.attention_end(self.attention(self.attention_norm(x), mask))
        y: Tensor = x + self.mlp_end(self.mlp(self.mlp_norm(x)) * mask)
        return y
