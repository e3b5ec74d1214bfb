"""Blocks that are residual in part: a norm after the sum, a change of shape before it, a token apart."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_blocks import D
from torch import Tensor, nn

from model.rewire import rewire, rewired_stages, set_beta


class PostNorm(nn.Module):
    """norm(x + F(x)), twice, as in the first Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(D, D), nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.f(x))
        return self.norm2(x + self.g(x))

    def recurrence(self, x: Tensor) -> Tensor:
        """At beta 1, one branch a stage: half of what the branch adds."""
        x = self.norm1(x + self.f(x) / 2)
        return self.norm2(x + self.g(x) / 2)


class Widening(nn.Module):
    """Changes the shape, then adds to what it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.f = nn.Linear(D, 2 * D), nn.Linear(2 * D, 2 * D)
        self.narrow = nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return self.narrow(x + self.f(x).relu())

    def recurrence(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return self.narrow(x + self.f(x).relu() / 2)


class ClassToken(nn.Module):
    """Norms the first token alone, between its branches, and activates the sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def between(self, x: Tensor) -> Tensor:
        x = torch.cat([self.norm(x[:, :1]), x[:, 1:]], dim=1)
        return torch.relu_(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(x + self.f(x))
        return torch.relu_(x + self.g(x)) * 2

    def recurrence(self, x: Tensor) -> Tensor:
        x = self.between(x + self.f(x) / 2)
        return torch.relu_(x + self.g(x) / 2) * 2


class FirstToken(nn.Module):
    """Adds to its first token what depends on all of them, and to that what depends on it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1]
        first = first + self.f(self.norm(x)).mean(dim=1, keepdim=True)
        first = first + self.g(first)
        return torch.cat([first, x[:, 1:]], dim=1)

    def recurrence(self, x: Tensor) -> Tensor:
        first = x[:, :1] + self.f(self.norm(x)).mean(dim=1, keepdim=True)
        return torch.cat([first + self.g(first) / 2, x[:, 1:]], dim=1)


class DroppedSum(nn.Module):
    """Scales the sum in training alone, as a drop-path after it does."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x)
        return x * 0.5 if self.training else x

    def recurrence(self, x: Tensor) -> Tensor:
        return (x + self.f(x) / 2) * 0.5


class Parallel(nn.Module):
    """x + f + g: one branch, f + g, whose sum is rounded in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) + self.g(x)


class Overwriting(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.norm2(x + self.g(x))


def gradients(network: nn.Module, y: Tensor) -> list[Tensor]:
    network.zero_grad()
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [p.grad.clone() for p in network.parameters()]


def tokens() -> Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))


def stack(block: type[nn.Module], depth: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), *(block() for _ in range(depth)))


@pytest.mark.slow
@pytest.mark.parametrize("block", [PostNorm, Widening, ClassToken, FirstToken, DroppedSum])
def test_a_block_with_operations_around_its_sums_is_a_recurrence_between_what_is_recomputed(block):
    network, x = stack(block), tokens()
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    rows = [row for row in table if row.kind == "reversible"]
    assert len(rows) == 3 and all("between operations that are recomputed" in row.reason for row in rows)
    for other in (x, torch.randn(3, 7, D)):
        assert torch.equal(network(other), plain(other))
    set_beta(network, 1.0)
    found = gradients(network, network(x))
    y = plain[0](x)
    for layer in list(plain)[1:]:
        y = layer.recurrence(y)
    for a, b in zip(found, gradients(plain, y), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)  # float32 states on a grid of 20 bits
    for stage in rewired_stages(network):
        stage.store_activations = True
    for a, b in zip(found, gradients(network, network(x)), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)  # the same numbers, summed in another order


def test_a_block_that_overwrites_its_input_is_refused():
    with pytest.raises(ValueError, match=r"mul_\(\) works in place on the state"):
        rewire(stack(Overwriting), example=tokens())


def test_a_copy_of_a_network_with_such_blocks_runs_its_own_parameters():
    network, x = stack(PostNorm), tokens()
    rewire(network, example=x)
    other = copy.deepcopy(network)
    y = network(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(network(x), y) and not other(x).any()


@pytest.mark.slow
def test_outer_modules_stay_as_they_are_where_inner_ones_are_residual():
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.layers = nn.Linear(D, D), nn.ModuleList(PostNorm() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            for layer in self.layers:
                x = layer(x)
            return x

    table = rewire(nn.Sequential(Stage(), Stage()), example=tokens())
    names = [row.name for row in table if row.kind == "reversible"]
    assert names == ["0.layers.0", "0.layers.1", "1.layers.0", "1.layers.1"]


def test_a_block_takes_the_place_of_parts_of_it_if_it_has_branches_besides_theirs():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.f, self.norm = Widening(), nn.Linear(D, D), nn.LayerNorm(D)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.norm(x + self.f(x))

    table = rewire(stack(Around, 2), example=tokens())
    assert [(row.name, row.num_branches) for row in table if row.kind == "reversible"] == [("1", 2), ("2", 2)]


@pytest.mark.parametrize("last", [Parallel, PostNorm])
def test_parallel_branches_are_the_original_bit_for_bit_at_beta_zero(last):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(D, D), Parallel(), Parallel(), last()), tokens()
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    assert [row.kind for row in table if row.name in "123"] == ["reversible"] * 3
    for other in (x, torch.randn(3, 7, D)):
        assert torch.equal(network(other), plain(other))
    for a, b in zip(gradients(network, network(x)), gradients(plain, plain(x)), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    set_beta(network, 1.0)
    assert not torch.equal(network(x), plain(x))


def test_a_sum_whose_branch_something_else_uses_is_recomputed():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g, self.h = nn.BatchNorm1d(5), nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            h = self.f(x)
            x = (x + self.g(h)) * h
            return x + self.h(x)

    network, x = stack(Gated), tokens()
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    assert [row.num_branches for row in table if row.kind == "reversible"] == [1, 1, 1]
    assert torch.equal(network(x), plain(x))
    assert torch.equal(network[1].f.running_mean, plain[1].f.running_mean)


@pytest.mark.slow
def test_the_reason_is_that_of_the_block_within_what_is_recomputed():
    class Trained(PostNorm):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + self.f(x))
            return self.norm2(x + self.g(x)) if self.training else x

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Trained(), Trained()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    network = nn.Sequential(Pair(), PostNorm())
    reasons = {row.name: (row.kind, row.reason) for row in rewire(network, example=tokens())}
    for name in ("0.a", "0.b"):
        kind, reason = reasons[name]
        assert kind == "recomputed" and "other branches in training than in evaluation" in reason


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Around(Adding):
    """Runs a module of the network's, then adds a branch of its own."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.shared(x))


class Sharing(nn.Module):
    """Blocks around one residual module, which the network names before them, as CoaT does."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.blocks = nn.ModuleList(Around(shared) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("shared", [Adding, FirstToken])
def test_a_residual_module_that_blocks_share_belongs_to_them(shared):
    torch.manual_seed(0)
    network = Sharing(shared())
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=tokens())
    reversible = [row.name for row in table if row.kind == "reversible"]
    assert reversible == ["blocks.0", "blocks.1"]
    for other in (tokens(), torch.randn(3, 7, D)):  # another size: the blocks are recorded anew
        assert torch.equal(network(other), plain(other))
