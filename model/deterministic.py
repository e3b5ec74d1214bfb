"""What PyTorch's deterministic mode refuses on CUDA, computed so that it does not.

The usual backward of interpolation and of pooling adds with atomics on a GPU: in any order, so that two runs
differ in their last bits. Under `torch.use_deterministic_algorithms(True)` the functions here are products
with a matrix of weights, or act on images; else they are PyTorch's own. Equal up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def interpolate_steps(features: Tensor, num_steps: int) -> Tensor:
    """Linear interpolation over time, as F.interpolate: (n, D, t) -> (n, D, num_steps)."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(features, size=num_steps, mode="linear", align_corners=False)
    t = features.shape[2]
    steps = torch.arange(num_steps, device=features.device)
    position = ((steps + 0.5) * (t / num_steps) - 0.5).clamp(0, t - 1)  # on the axis of the old steps
    distance = (position - torch.arange(t, device=features.device)[:, None]).abs()
    return _weighted(features, (1 - distance).clamp(min=0))


def average_steps(features: Tensor, num_steps: int) -> Tensor:
    """Means over equal parts of the time axis, as F.adaptive_avg_pool1d: (n, D, t) -> (n, D, num_steps)."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool1d(features, num_steps)
    t = features.shape[2]
    steps = torch.arange(num_steps, device=features.device)
    first, end = steps * t // num_steps, -(-(steps + 1) * t // num_steps)  # rounded down, rounded up
    old = torch.arange(t, device=features.device)[:, None]
    return _weighted(features, ((old >= first) & (old < end)) / (end - first))


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """(n, D, t) by (t, T) -> (n, D, T), summed in float32."""
    return (features.float() @ weights.float()).to(features.dtype)


class FrameMaxPool(nn.MaxPool3d):
    """nn.MaxPool3d over the space of each frame; on images its backward has an order."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__((1, kernel, kernel), (1, stride, stride), (0, padding, padding))
        self.in_space = (kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, L, H, W) -> (n, C, L, h, w)."""
        if not torch.are_deterministic_algorithms_enabled():
            volumes: Tensor = super().forward(x)
            return volumes
        images = x.transpose(1, 2).flatten(0, 1)  # (n*L, C, H, W)
        pooled = F.max_pool2d(images, *self.in_space)
        return torch.unflatten(pooled, 0, (len(x), -1)).transpose(1, 2)
