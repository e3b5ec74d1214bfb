"""Residual branches with dropout and batch norm, their recurrence under plain autograd, gradients of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.reversible import Branch, run_stage
from tools.benchmarks.trackers import SavedBytes


class DropPath(nn.Module):
    """Drops the whole branch of a sample with probability 0.3."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < 0.7
        return x * keep / 0.7 if self.training else x


def pre_norm_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(2 * width, width),
        DropPath(),
    )


def conv_norm(width: int) -> nn.Sequential:
    # Softplus: between the kinks of a ReLU a rounding error of 1e-7 would flip single gradients.
    return nn.Sequential(
        nn.Conv1d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm1d(width),
        nn.Softplus(),
        nn.Dropout(0.2),
        nn.Conv1d(width, width, 1),
    )


def stage(num_branches: int, kind=pre_norm_mlp, width: int = 6, dtype=torch.float64) -> list[Branch]:
    torch.manual_seed(num_branches)
    modules = [kind(width).to(dtype) for _ in range(num_branches)]
    return [Branch(module, module) for module in modules]


def reference(
    branches: list[Branch], x: Tensor, beta: float, post_activation: bool, leapfrog: bool = False
) -> Tensor:
    """The formulas of the docstring, under plain autograd."""

    def leaky(z: Tensor, slope: float) -> Tensor:
        return torch.where(z > 0, z, slope * z)

    previous = current = x
    for branch in branches:
        residual = branch(current)
        if post_activation:
            residual = leaky(residual, 1 - beta)
        if leapfrog:
            residual = (1 + beta) * residual
        following = (1 - beta) * current + beta * previous + residual
        previous, current = current, leaky(following, beta) if post_activation else following
    return (current + beta * previous) / (1 + beta)


def gradients(branches: list[Branch], function, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of all parameters, from one seed."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    y = function(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)).sum().backward()
    found = [y.detach(), x.grad]
    for branch in branches:
        for parameter in branch.module.parameters():
            found.append(parameter.grad)
            parameter.grad = None
    return found


def distance(a: Tensor, b: Tensor) -> float:
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30)).item()


def saved_bytes(branches: list[Branch], x: Tensor, **options) -> int:
    ignore = {p.untyped_storage().data_ptr() for branch in branches for p in branch.module.parameters()}
    with SavedBytes(ignore) as saved:
        y = run_stage(branches, x, **options)
    held = saved.now
    assert y.requires_grad
    return held
