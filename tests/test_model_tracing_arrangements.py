"""Blocks that arrange their state anew around the sum: channels last, transposed; gradients, too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from model.rewire import rewire, set_beta

D = 8


class Arranged(nn.Module):
    """Sums on another arrangement of (n, D, h, w) and goes back. opaque: its control flow reads values."""

    def __init__(self, kind: str, opaque: bool) -> None:
        super().__init__()
        self.kind, self.opaque, self.fc = kind, opaque, nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        if self.opaque and x.sum() > 1e9:
            raise ValueError("too much")
        n, d, h, w = x.shape
        if self.kind == "permute":
            y = x.permute(0, 2, 3, 1)
            y = y + self.fc(y)
            return y.permute(0, 3, 1, 2)
        if self.kind == "permute, a tuple":
            y = torch.permute(x, (0, 2, -1, 1))
            y = y + self.fc(y)
            return torch.permute(y, (0, 3, 1, 2))
        if self.kind == "transpose":
            y = x.flatten(2).transpose(1, 2)
            y = y + self.fc(y)
            return y.transpose(-1, -2).reshape(n, d, h, w)
        y = torch.swapaxes(x, 1, 3).contiguous()
        y = y + self.fc(y)
        return torch.swapdims(y, 3, 1)


def branch(block: Arranged, x: Tensor) -> Tensor:
    """F(x) on (n, D, h, w), whatever the arrangement."""
    return block.fc(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("kind", ["permute", "permute, a tuple", "transpose", "swapaxes"])
@pytest.mark.parametrize("opaque", [False, True])
def test_a_sum_on_an_arranged_state_is_rewired_and_its_gradients_are_those_of_the_recurrence(kind, opaque):
    torch.manual_seed(0)
    network = nn.Sequential(*(Arranged(kind, opaque) for _ in range(3))).double()
    plain, x = copy.deepcopy(network), torch.randn(2, D, 3, 5, dtype=torch.float64)
    if opaque:  # reads values: refused, never altered
        with pytest.raises(ValueError, match="reads values|cannot be traced"):
            rewire(network, beta=0.0, example=x)
        return
    assert [row.kind for row in rewire(network, beta=0.0, example=x)] == ["reversible"] * 3
    for size in ((1, D, 2, 2), (3, D, 4, 7)):
        other = torch.randn(size, dtype=torch.float64)
        assert torch.equal(network(other), plain(other))
    set_beta(network, 1.0)
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    (network(x) * weights).sum().backward()
    one = other = x
    for number, block in enumerate(plain):
        if number % 2 == 0:
            one = one + branch(block, other)
        else:
            other = other + branch(block, one)
    (((one + other) / 2) * weights).sum().backward()
    for found, block in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found.grad, block.grad, rtol=1e-6, atol=1e-6)
