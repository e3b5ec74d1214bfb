"""Convolutions of the backbones: right in bfloat16 and fast on a CPU, too; their initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Triple = tuple[int, int, int]


class Convolution(nn.Conv3d):
    """A convolution without bias, zero-padded by half its kernel; computes in the dtype of its weight."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        t, h, w = kernel
        super().__init__(inputs, outputs, kernel, stride, (t // 2, h // 2, w // 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, L, H, W) -> (n, outputs, l, h, w)."""
        x = x.to(self.weight.dtype)  # the states of a rewired network are float32
        low_precision = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if x.device.type == "cpu" and low_precision and x.shape[2] < self.kernel_size[0]:
            # oneDNN's bfloat16 weight gradient is garbage if the convolution pads so few frames (torch 2.13:
            # two on an AMD EPYC, one on an Intel Xeon with AMX). To pad by hand is right and costs a copy.
            time, height, width = (size // 2 for size in self.kernel_size)
            x = F.pad(x, (0, 0, 0, 0, time, time))
            return F.conv3d(x, self.weight, stride=self.stride, padding=(0, height, width))
        return super().forward(x)


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """x: (n, C, L, H, W); on a CPU channels last: oneDNN's split convolutions are up to twice as fast."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


def initialise_convolutions(network: nn.Module) -> None:
    """torchvision's initialisation: He et al. over fan-out; norms keep torch's weight 1, bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
