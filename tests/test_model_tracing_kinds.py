"""Blocks as other libraries have them: arguments, tuples, reshapes around the sum, frozen batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_blocks import Basic, D, image
from torch import Tensor, nn

from model.rewire import rewire, rewired_stages, set_beta


class Block(nn.Module):
    """Takes a mask, works on a reshaped state, returns a tuple; its control flow stops torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, None]:
        n, length, d = x.shape
        if length != size[0] * size[1]:
            raise ValueError("length")
        x = x + self.f(x) * mask
        x = x.view(n, *size, d)
        x = x + self.g(x)
        return x.reshape(n, length, d), None


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(D, D)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))
        self.learned_mask = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            mask = torch.full((x.shape[1], 1), 0.5 + i)
            x = layer(x, self.scale * mask if self.learned_mask else mask, (2, x.shape[1] // 2))[0]
        return x


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_arguments_tuples_and_reshapes_are_held_for_every_block_of_a_chain():
    network, x = Network(), torch.randn(2, 6, D)
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    assert [(r.kind, r.num_branches) for r in table] == [("reversible", 2)] * 3
    for length in (6, 4, 10):
        other = torch.randn(3, length, D)
        assert torch.equal(network(other), plain(other))
    set_beta(network, 1.0)
    found = gradients(network, x)
    one = other = plain.stem(x)
    for i, layer in enumerate(plain.layers):
        one = one + layer.f(other) * (0.5 + i)
        other = other + layer.g(one)
    y = (one + other) / 2
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    for a, p in zip(found, [p for p in plain.parameters() if p.grad is not None], strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-4)  # float32 states on a grid of 20 bits


def test_an_argument_that_carries_a_gradient_is_refused_by_name():
    network = Network()
    network.learned_mask = True
    with pytest.raises(ValueError, match="called with mask, which carries a gradient"):
        rewire(network, example=torch.randn(2, 6, D))


def test_the_output_of_a_block_within_a_chain_cannot_be_read():
    network = Network()
    rewire(network, example=torch.randn(2, 6, D))
    pending, _ = network.layers[0](torch.randn(2, 6, D), torch.ones(6, 1), (2, 3))
    with pytest.raises(ValueError, match=r"the output of layers.0 is used by mul\(\)"):
        pending * 2


def test_frozen_batch_norms_in_a_training_network_are_rewired():
    network = nn.Sequential(Basic(), Basic())
    rewire(network, beta=1.0)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found = gradients(network, image())
    for stage in rewired_stages(network):
        stage.invert = False
    for a, b in zip(found, gradients(network, image()), strict=True):
        assert torch.equal(a, b)


class Positions(nn.Module):
    """Keeps a table for the length that it got, and in evaluation what it makes of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.bias = nn.Linear(D, D), nn.Parameter(torch.randn(8))
        self.table: Tensor | None = None
        self.cache: dict[str, Tensor] = {}
        self.counting = False

    def train(self, mode: bool = True) -> Positions:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.table is None or len(self.table) != length:
            self.table = torch.arange(length, dtype=x.dtype)[:, None]
        if self.counting:
            self.num_calls = getattr(self, "num_calls", 0) + 1
        bias = self.bias
        if not self.training:
            bias = self.cache.setdefault("bias", self.bias * 2)
        return x + self.f(x + self.table) * bias[:length, None]


def test_what_a_block_makes_once_of_its_parameters_and_keeps_is_made_anew():
    torch.manual_seed(0)
    network, x = nn.Sequential(Positions(), Positions()), torch.randn(2, 6, D)
    network.eval()(x)  # fills what it keeps
    table = rewire(network, beta=0.0, example=x)
    assert [row.kind for row in table] == ["reversible"] * 2
    for training in (True, False):
        network.train(training)
        with torch.no_grad():
            network[0].bias.add_(1)
        plain = nn.Sequential(Positions(), Positions()).train(training)
        plain.load_state_dict(network.state_dict())
        for length in (6, 5, 6):
            y = torch.randn(2, length, D)
            assert torch.equal(network(y), plain(y))


def test_a_block_may_make_a_list_where_it_had_none_at_first():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.factors = nn.Linear(D, D), None

        def forward(self, x: Tensor) -> Tensor:
            if self.factors is None:
                self.factors = [0.5, 2.0]
            return x + self.f(x * self.factors[0]) * self.factors[1]

    network, x = nn.Sequential(Scaled(), Scaled()), torch.randn(2, 6, D)
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    assert [row.kind for row in table] == ["reversible"] * 2
    for y in torch.randn(3, 2, 6, D):
        assert torch.equal(network(y), plain(y))


def test_a_block_that_counts_its_calls_is_refused():
    network = nn.Sequential(Positions(), Positions())
    for block in network:
        block.counting = True
    with pytest.raises(ValueError, match="its forward assigns num_calls"):
        rewire(network, example=torch.randn(2, 6, D))


def test_a_module_may_choose_its_forward_among_its_methods():
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(D, D)
            self.forward = self.forward_twice

        def forward_twice(self, x: Tensor) -> Tensor:
            return self.f(self.f(x))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Choosing()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    network, x = nn.Sequential(Around(), Around()), torch.randn(2, 6, D)
    plain = copy.deepcopy(network)
    assert [row.kind for row in rewire(network, beta=0.0)] == ["reversible"] * 2
    assert torch.equal(network(x), plain(x))


def test_a_block_may_be_given_its_state_as_shortcut_again():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(D, D)

        def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
            return self.f(x) + (x if shortcut is None else shortcut)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Shortcut(), Shortcut()
            self.b_is_given = False

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x, shortcut=x)
            return self.b(y, shortcut=x if self.b_is_given else y)

    torch.manual_seed(0)
    network, x = Twice(), torch.randn(2, 6, D)
    plain = copy.deepcopy(network)
    table = rewire(network, beta=0.0, example=x)
    assert [(row.name, row.kind) for row in table] == [("a", "reversible"), ("b", "reversible")]
    assert torch.equal(network(x), plain(x))
    network.b_is_given = True
    with pytest.raises(ValueError, match="carries a gradient"):
        network(x.requires_grad_())


def test_stage_names_alone_do_not_make_a_network_a_prepared_one():
    network = nn.Sequential(Basic(), Basic())
    network.stage_names = ["stem", "stage1"]
    assert [row.kind for row in rewire(network, example=image())] == ["reversible"] * 2
