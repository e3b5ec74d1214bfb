"""A tiny network to rewire, its recurrence under plain autograd, gradients and saved bytes of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.recurrence import Recurrence
from tools.benchmarks.trackers import SavedBytes

MIB = 2**20


def tiny(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("r2plus1d_tiny").to(dtype)


def clips(n: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, 8, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of a loss that weighs every feature differently."""
    network.zero_grad()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    error = sum((found[name] - tensor).square().sum() for name, tensor in expected.items())
    return (error / sum(tensor.square().sum() for tensor in expected.values())).sqrt().item()


def slow_forward(network: nn.Module, x: Tensor, beta: float) -> Tensor:
    """The rewired R(2+1)D written out, under plain autograd."""
    recurrence = Recurrence(beta, post_activation=True)
    x = network.stem(x)
    for name in network.stage_names:
        first, *others = getattr(network, name)
        if first.downsample is None:
            others = [first, *others]
        else:
            x = recurrence.activate(first.downsample(x) + recurrence.branch_output(first.residual, x))
        previous = current = x
        for block in others:
            increment = recurrence.branch_output(block.residual, current)
            previous, current = current, recurrence.forward_step(previous, current, increment)
        x = recurrence.output(previous, current)
    return x


class SlowNetwork(nn.Module):
    def __init__(self, network: nn.Module, beta: float):
        super().__init__()
        self.network, self.beta = network, beta

    def forward(self, x: Tensor) -> Tensor:
        return slow_forward(self.network, x, self.beta)


def saved_mib(network: nn.Module, x: Tensor) -> float:
    tensors = [*network.parameters(), *network.buffers()]
    with SavedBytes({tensor.untyped_storage().data_ptr() for tensor in tensors}) as saved:
        y = network(x)
    held = saved.now / MIB
    assert y.requires_grad
    return held
