"""Chains of blocks: proven by nn.Sequential or by tracing the owner, observed in a run, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.tracing.chain import Chain, chains
from model.tracing.observe import observe

D = 4
NAMES = ("layers.0", "layers.1", "layers.2")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return x + scale * self.f(x)


class Encoder(nn.Module):
    """A ModuleList of three blocks, called by `call_blocks`."""

    def __init__(self, call_blocks: Callable[[Encoder, Tensor], object]) -> None:
        super().__init__()
        self.call_blocks = call_blocks
        self.stem, self.norm = nn.Linear(D, D), nn.BatchNorm1d(D)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> object:
        return self.call_blocks(self, x)


def straight(m: Encoder, x: Tensor) -> Tensor:
    x = m.stem(x)
    for layer in m.layers:
        x = layer(x, mask=None)
    return m.norm(x)


def collecting(m: Encoder, x: Tensor) -> Tensor:
    """Feature pyramid: what layer 0 returns is used again."""
    states = []
    for layer in m.layers:
        x = layer(x)
        states.append(x)
    return states[-1] + states[0]


def returning(m: Encoder, x: Tensor) -> dict[str, object]:
    states = []
    for layer in m.layers:
        x = layer(x)
        states.append(x)
    return {"hidden": tuple(states[1:])}


def between(m: Encoder, x: Tensor) -> Tensor:
    x = m.layers[1](m.layers[0](x))
    return m.layers[2](F.relu(x))


def in_place_between(m: Encoder, x: Tensor) -> Tensor:
    x = m.layers[1](m.layers[0](x))
    x.relu_()
    return m.layers[2](x)


def backwards(m: Encoder, x: Tensor) -> Tensor:
    return m.layers[0](m.layers[1](m.layers[2](x)))


def twice(m: Encoder, x: Tensor) -> Tensor:
    return m.layers[2](m.layers[1](m.layers[0](m.layers[1](x))))


def forgotten(m: Encoder, x: Tensor) -> Tensor:
    return m.layers[1](m.layers[0](x))


def masked(m: Encoder, x: Tensor) -> Tensor:
    mask = x.sum(-1)
    return m.layers[2](m.layers[1](m.layers[0](x), mask))


def scaled(m: Encoder, x: Tensor) -> Tensor:
    return m.layers[2](m.layers[1](m.layers[0](x), scale=0.5))


def metadata(m: Encoder, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = layer(x)
        assert x.shape[-1] is not None and x.size(0) is not None
    return x


def first_of_a_tuple(m: Encoder, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = layer(x)[0]
    return x


def second_of_a_tuple(m: Encoder, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = layer(x)[1]
    return x


def both_of_a_tuple(m: Encoder, x: Tensor) -> Tensor:
    outputs = m.layers[0](x)
    return m.layers[2](m.layers[1](outputs[0])[0])[0] + outputs[1]


def whole(reasons: Iterable[Chain]) -> list[tuple[tuple[str, ...], str | None]]:
    return [(tuple(name.removeprefix("layers.") for name in c.blocks), c.reason) for c in reasons]


ALL = [(("0", "1", "2"), None)]
CASES = [
    (straight, ALL),
    (metadata, ALL),
    (backwards, [(("2", "1", "0"), None)]),
    (between, [(("0", "1"), None), (("2",), None)]),
    (in_place_between, [(("0", "1"), None), (("2",), None)]),
    (collecting, [(("0",), None), (("1", "2"), None)]),
    (returning, [(("0", "1"), None), (("2",), None)]),
    (forgotten, [(("0", "1"), None), (("2",), "it is never called")]),
    (masked, [(("0",), None), (("1",), "it is called with its argument mask set"), (("2",), None)]),
    (scaled, [(("0",), None), (("1",), "it is called with its argument scale set"), (("2",), None)]),
    (twice, [(("1",), "it is called 2 times"), (("0",), None), (("2",), None)]),
]


@pytest.mark.parametrize(("call_blocks", "expected"), CASES)
@pytest.mark.parametrize("evidence", ["traced", "observed"])
def test_blocks_fed_by_the_one_before_alone_form_a_chain(call_blocks, expected, evidence):
    network = Encoder(call_blocks)
    found = chains(network, NAMES) if evidence == "traced" else observe(network, NAMES, torch.randn(2, D))
    if evidence == "observed" and call_blocks in (masked, scaled):
        expected = ALL  # further arguments are held for the call
    assert whole(found) == expected
    assert {chain.container for chain in found} == {"layers"} and {c.evidence for c in found} == {evidence}


@pytest.mark.parametrize(
    ("call_blocks", "expected"),
    [
        (first_of_a_tuple, ALL),
        (second_of_a_tuple, [(("0",), None), (("1",), None), (("2",), None)]),
        (both_of_a_tuple, [(("0",), None), (("1", "2"), None)]),
    ],
)
def test_the_first_of_what_a_block_returns_is_its_state(call_blocks, expected):
    assert whole(chains(Encoder(call_blocks), NAMES)) == expected


def choosing(m: Encoder, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = layer(x) if x.shape[0] < 100 else x
    return x


def skipping(m: Encoder, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = x if random.random() < 0.1 else layer(x)
    return x


def dropping(m: Encoder, x: Tensor) -> Tensor:
    """The last layer rests in training."""
    for layer in list(m.layers)[: 2 if m.training else 3]:
        x = layer(x)
    return x


@pytest.mark.parametrize(
    ("call_blocks", "reason"),
    [
        (choosing, r"the network \(Encoder\): its forward cannot be traced .* give example="),
        (skipping, "it draws from Python's or NumPy's random numbers"),
        (dropping, "calls its blocks otherwise in training than in evaluation"),
    ],
)
def test_an_owner_that_proves_nothing_is_named(call_blocks, reason):
    (chain,) = chains(Encoder(call_blocks), NAMES)
    assert chain.blocks == NAMES and chain.reason is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(chain.reason)


def test_a_run_shows_what_tracing_cannot():
    assert whole(observe(Encoder(choosing), NAMES, torch.zeros(2, D))) == ALL
    (chain,) = observe(Encoder(dropping), NAMES, torch.zeros(2, D))
    assert chain.reason == "it was called otherwise in training than in evaluation"


def test_watching_leaves_no_trace():
    network = Encoder(straight)
    network.layers[1].eval()
    flags = [module.training for module in network.modules()]
    state, generator = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    observe(network, NAMES, x=torch.randn(2, D, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_children_of_a_sequential_are_chained_by_definition():
    network = nn.Module()
    network.stage = nn.Sequential(Block(), Block(), nn.ReLU(), Block())
    names = ["stage.0", "stage.1", "stage.3"]
    assert chains(network, names) == [
        Chain("stage", ("stage.0", "stage.1"), "sequential", None),
        Chain("stage", ("stage.3",), "sequential", None),
    ]


def test_a_sequential_with_a_forward_of_its_own_is_traced():
    class Skipping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x)) + self[0](x)

    (first, second) = chains(nn.Sequential(Skipping(Block(), Block())), ["0.0", "0.1"])
    assert first.reason == "it is called 2 times" and second == Chain("0", ("0.1",), "traced", None)


def test_the_same_block_twice_in_a_sequential_is_no_chain():
    block = Block()
    (chain,) = chains(nn.Sequential(block, block), ["0", "1"])[:1]
    assert chain.reason == "the sequence holds it twice"


def test_owners_with_several_inputs_and_blocks_as_attributes_are_traced():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.other = Block(), Block(), Block()

        def forward(self, video: Tensor, audio: Tensor, *, flag: bool = False) -> tuple[Tensor, Tensor]:
            return self.second(self.first(video)), self.other(audio)

    names = ["first", "second", "other"]
    expected = [(("first", "second"), None), (("other",), None)]
    assert whole(chains(Two(), names)) == expected
    assert whole(observe(Two(), names, torch.zeros(1, D), torch.zeros(1, D))) == expected
