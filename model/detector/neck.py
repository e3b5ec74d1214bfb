"""The neck: a convolution, then two LSTMs that add the past and the future to the features of every step.

ETAD (Liu et al., CVPRW 2023): a grouped convolution with group norm, a forward and a backward LSTM, one
branch for each and one without recurrence, mixed by a 1x1 convolution (therefore not grouped here).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GROUPS = 4  # of the grouped convolutions
NORM_CHANNELS = 16  # channels per group of the group norm


def temporal_conv(inputs: int, outputs: int, *, width: int = 3, bias: bool = True) -> nn.Conv1d:
    """A convolution over time that keeps T; grouped by 4 where both channel counts allow it."""
    groups = math.gcd(GROUPS, math.gcd(inputs, outputs))
    return nn.Conv1d(inputs, outputs, width, padding=width // 2, groups=groups, bias=bias)


def channel_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 16 channels per group, or one group where that does not divide."""
    return nn.GroupNorm(channels // NORM_CHANNELS if channels % NORM_CHANNELS == 0 else 1, channels)


def past_and_future(forward_lstm: nn.LSTM, backward_lstm: nn.LSTM, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each LSTM's output in the order of the steps: (B, D, T) -> (B, hidden, T) twice."""
    sequence = x.transpose(1, 2)  # (B, T, D)
    past, future = forward_lstm(sequence)[0], backward_lstm(sequence.flip(1))[0].flip(1)
    return past.transpose(1, 2), future.transpose(1, 2)


class Neck(nn.Module):
    """(B, num_features, T) -> (B, neck_dim, T); every step depends on the whole sequence."""

    def __init__(self, num_features: int, neck_dim: int):
        super().__init__()
        self.embed = nn.Sequential(temporal_conv(num_features, neck_dim), channel_norm(neck_dim), nn.ReLU())
        self.forward_lstm = nn.LSTM(neck_dim, neck_dim, batch_first=True)
        self.backward_lstm = nn.LSTM(neck_dim, neck_dim, batch_first=True)
        self.past = nn.Sequential(temporal_conv(neck_dim, neck_dim // 2), nn.ReLU())
        self.future = nn.Sequential(temporal_conv(neck_dim, neck_dim // 2), nn.ReLU())
        self.present = nn.Sequential(temporal_conv(neck_dim, neck_dim), nn.ReLU())
        self.join = nn.Sequential(nn.Conv1d(2 * neck_dim, neck_dim, 1), channel_norm(neck_dim), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features)
        past, future = past_and_future(self.forward_lstm, self.backward_lstm, x)
        y: Tensor = self.join(torch.cat([self.past(past), self.future(future), self.present(x)], 1))
        return y
