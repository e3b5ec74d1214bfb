"""What surrounds chains of blocks: containers of containers, transitions that run again, made-up examples."""

from __future__ import annotations

import copy

import pytest
import torch
from foreign_blocks import Basic
from torch import Tensor, nn

from model.rewire import rewire
from model.tracing.example import guess_example
from tools.benchmarks.coverage import plain_autograd


class NormAct(nn.BatchNorm2d):
    """timm's: a batch norm that activates, and counts its calls itself."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)


class Inverted(nn.Module):
    """timm's EfficientNet: the branch is dropped, and the shortcut is added last."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm, self.project = nn.Conv2d(4, 8, 1), NormAct(8), nn.Conv2d(8, 4, 1)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.project(self.norm(self.expand(x)))
        return self.drop_path(x) + shortcut


def nested() -> nn.Module:
    """Stages of blocks within one sequence, and a transition between them."""
    torch.manual_seed(0)
    stages = nn.Sequential(
        nn.Sequential(Inverted(), Inverted(), Inverted()),
        nn.Sequential(Basic(nn.Conv2d(4, 4, 1)), Basic(), Basic()),
    )
    return nn.Sequential(nn.Conv2d(3, 4, 1), stages).train()


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    torch.manual_seed(4)
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_blocks_of_nested_sequences_with_norms_that_activate_are_found():
    """A sequence of blocks that keep the shape is one block with as many branches."""
    rows = rewire(nested(), example=torch.randn(2, 3, 8, 8))
    found = {row.name: row.num_branches for row in rows if row.kind == "reversible"}
    assert found == {"1.0": 3, "1.1.1": 1, "1.1.2": 1}
    assert [row.name for row in rows if row.kind == "transition"] == ["1.1.0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_rewired(dtype):
    network = nested().to(dtype)
    rewire(network, example=torch.randn(2, 3, 8, 8, dtype=dtype))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = gradients(network, x)
    with plain_autograd(network):
        assert all(torch.equal(a, b) for a, b in zip(found, gradients(network, x), strict=True))
    assert {gradient.dtype for gradient in found} == {network(x).dtype} == {dtype}


@pytest.mark.slow
def test_they_are_the_same_network_at_beta_zero_for_inputs_of_every_size():
    network = nested()
    plain = copy.deepcopy(network)
    rewire(network, beta=0.0, example=torch.randn(2, 3, 8, 8))
    for seed in range(20):
        for each in (network, plain):
            each.train(seed % 2 == 0)
        x = torch.randn(1 + seed % 3, 3, 5 + seed, 25 - seed)
        torch.manual_seed(seed)
        expected = plain(x)
        torch.manual_seed(seed)
        assert torch.equal(network(x), expected), f"{tuple(x.shape)}"
    for a, b in zip(network.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_transition_runs_again_and_its_gradients_are_those_of_the_plain_network():
    """At beta 0 the network is the plain one, so that its gradients are, too."""
    network, x = nested().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = copy.deepcopy(network)
    rows = {row.name: row for row in rewire(network, beta=0.0, example=x)}
    transition = rows["1.1.0"]
    assert transition.bytes_before > 10 * transition.bytes_after
    runs = []
    network.get_submodule("1.1.0.conv1").register_forward_hook(lambda *_: runs.append(None))
    found = gradients(network, x)
    assert len(runs) == 2
    for a, b in zip(found, gradients(plain, x), strict=True):
        assert torch.allclose(a, b, atol=1e-12)  # float64
    buffers = zip(network.buffers(), plain.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)  # statistics count one run, not two


def test_a_chain_beside_transitions_keeps_less_than_its_blocks_did():
    rows = rewire(nested(), example=torch.randn(2, 3, 8, 8))
    (chain,) = (row for row in rows if row.name == "1.0")
    state = 2 * 4 * 8 * 8 * 4  # bytes of one float32 state
    assert chain.num_branches == 3 and chain.bytes_after <= 4 * state < chain.bytes_before


class Described(nn.Module):
    """As timm: its input is described, and no other accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.default_cfg = {"input_size": (3, 24, 40)}

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 24, 40)
        return self.stem(x)


class Fussy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not like this")


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Described(), (3, 24, 40)),
        (nn.Sequential(nn.Linear(7, 4), nn.ReLU()), (7,)),
        (nn.Sequential(nn.Conv1d(5, 4, 1)), None),
        (nn.Sequential(nn.Conv3d(3, 4, 1)), None),
        (Fussy(), "none"),
        (nn.ReLU(), "none"),
    ],
)
def test_an_example_is_made_up_from_the_description_or_the_first_layer(network, shape):
    state = torch.get_rng_state()
    example = guess_example(network)
    assert torch.equal(torch.get_rng_state(), state)
    if shape == "none":
        assert example is None
        return
    (x,) = example.args
    network(x)
    assert shape is None or tuple(x.shape[1:]) == shape


def test_without_an_example_one_is_made_up_and_bytes_are_known():
    rows = rewire(nested())
    assert all(row.bytes_after is not None for row in rows)
