"""ETAD's neck as released: the form of ../neck.py, with a norm after each convolution and a grouped join."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..neck import past_and_future, temporal_conv

_NORM_GROUPS = 16


def normed_conv(inputs: int, outputs: int, *, width: int = 3) -> nn.Sequential:
    """A grouped convolution without bias, a group norm of 16 groups (or what divides), a ReLU."""
    convolution = temporal_conv(inputs, outputs, width=width, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(_NORM_GROUPS, outputs), outputs), nn.ReLU())


class Neck(nn.Module):
    """(B, num_features, T) -> (B, neck_dim, T); every step depends on the whole sequence."""

    def __init__(self, num_features: int, neck_dim: int):
        super().__init__()
        self.embed = normed_conv(num_features, neck_dim)
        self.forward_lstm = nn.LSTM(neck_dim, neck_dim, batch_first=True)
        self.backward_lstm = nn.LSTM(neck_dim, neck_dim, batch_first=True)
        self.past = normed_conv(neck_dim, neck_dim // 2)
        self.future = normed_conv(neck_dim, neck_dim // 2)
        self.present = normed_conv(neck_dim, neck_dim)
        self.join = normed_conv(2 * neck_dim, neck_dim, width=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features)
        past, future = past_and_future(self.forward_lstm, self.backward_lstm, x)
        y: Tensor = self.join(torch.cat([self.past(past), self.present(x), self.future(future)], 1))
        return y
