"""Rewired networks: the same parameters, the plain function at beta 0, a table of blocks, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from rewire_cases import clips, distance, step, tiny
from torch import Tensor, nn

from model.backbones import build_backbone
from model.backbones.r2plus1d import BasicBlock
from model.recompute import frozen_statistics
from model.rewire import describe, rewire, set_beta
from model.rewired_stage import RewiredStage


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r2plus1d_tiny", "r2plus1d_18"])
def test_parameters_keep_their_names_order_and_tensors(name):
    network = build_backbone(name)
    before = network.state_dict(keep_vars=True)
    rewire(network)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is tensor for key, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_zero_reproduces_the_plain_network_bit_for_bit(dtype):
    network, plain = tiny(dtype), tiny(dtype)
    rewire(network, beta=0.0)
    (y, gradients), (y2, gradients2) = step(network, clips(dtype=dtype)), step(plain, clips(dtype=dtype))
    assert torch.equal(y, y2)
    assert all(torch.equal(gradients[name], tensor) for name, tensor in gradients2.items())


@pytest.mark.slow
def test_beta_zero_reproduces_batch_norm_statistics_too():
    torch.manual_seed(0)
    network = build_backbone("r2plus1d_18")
    plain, x = copy.deepcopy(network), torch.randn(2, 3, 8, 32, 32)
    rewire(network, beta=0.0)
    (y, _), (y2, _) = step(network, x), step(plain, x)
    assert torch.equal(y, y2)
    for (name, buffer), other in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_beta_can_change_during_training():
    network, plain = tiny(), tiny()
    rewire(network, beta=1.0)
    assert not torch.equal(network(clips()), plain(clips()))
    y = network(clips())
    set_beta(network, 0.0)  # between forward and backward: the backward belongs to its forward
    y.sum().backward()
    assert torch.equal(network(clips()), plain(clips()))
    with pytest.raises(ValueError, match="beta: got 2"):
        set_beta(network, 2.0)
    with pytest.raises(ValueError, match="no rewired stage"):
        set_beta(plain, 0.5)


@pytest.mark.slow
def test_table_names_every_block():
    network = build_backbone("r2plus1d_18")
    table = rewire(network)
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [row.name for row in table] == ["stem", *blocks]
    kinds = {row.name: row.kind for row in table}
    reasons = {row.name: row.reason for row in table}
    assert "recomputed" in reasons["layer2.0"] and "stored" in reasons["layer3.0"]
    assert [name for name in blocks if kinds[name] == "reversible"] == [
        "layer1.0",
        "layer1.1",
        "layer2.1",
        "layer3.1",
        "layer4.1",
    ]
    assert kinds["stem"] == "recomputed" and kinds["layer4.0"] == "transition"
    assert len(describe(table).splitlines()) == len(table)


def test_stored_transitions_give_the_same_gradients():
    network, other = tiny(), tiny()
    rewire(network)
    table = rewire(other, stored=("stem", "layer2.0"))
    assert {row.name: row.kind for row in table}["stem"] == "plain"
    (y, gradients), (y2, gradients2) = step(network, clips()), step(other, clips())
    assert torch.equal(y, y2)
    assert distance(gradients, gradients2) < 1e-14  # the same operations: at most their sums differ in order
    with pytest.raises(ValueError, match="stored: got 'layer2.1', want some of stem, layer1.0, layer2.0"):
        rewire(tiny(), stored=("layer2.1",))


@pytest.mark.slow
def test_training_mode_is_kept_module_by_module():
    network = build_backbone("r2plus1d_18")
    network.layer1.eval()
    before = {name: module.training for name, module in network.named_modules()}
    rewire(network)
    assert {name: module.training for name, module in network.named_modules()} == before


def test_a_rewired_network_can_be_copied():
    network = tiny()
    rewire(network, beta=0.7)
    other = copy.deepcopy(network)
    assert torch.equal(other(clips()), network(clips()))
    step(other, clips())
    assert all(p.grad is None for p in network.parameters())  # the copy's branches are its own


def test_modules_outside_every_stage_are_named():
    network = prepared(layer1=nn.Sequential(block()), norm=nn.LayerNorm(8))
    assert {row.name: row.kind for row in rewire(network)} == {"layer1.0": "reversible", "norm": "untouched"}


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def prepared(**children: nn.Module) -> nn.Module:
    network = nn.Module()
    network.stage_names, network.recomputed_names = ["layer1"], [name for name in children if name == "stem"]
    for name, child in children.items():
        network.add_module(name, child)
    return network


def block(**attributes) -> nn.Module:
    made = BasicBlock(8, 8, (8, 8), nn.BatchNorm3d)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class TwoBranchTransition(BasicBlock):
    @property
    def branches(self):
        return (self.residual, self.residual)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (prepared(layer1=Foreign()), "layer1 is a Foreign, want an nn.Sequential of blocks"),
        (
            prepared(layer1=nn.Sequential(block(), Foreign())),
            "layer1.1 is a Foreign without branches, downsample, post_activation: not known to be residual",
        ),
        (
            prepared(layer1=nn.Sequential(block()), stem=nn.Linear(2, 2)),
            "stem has parameters of its own, want them in submodules",
        ),
        (prepared(layer1=nn.Sequential(block(), block(post_activation=False))), "layer1 mixes blocks"),
        (
            prepared(layer1=nn.Sequential(TwoBranchTransition(8, 16, (8, 8), nn.BatchNorm3d, 2))),
            "changes the shape with 2 branches, want 1",
        ),
    ],
)
def test_unknown_modules_are_refused_with_a_reason_and_left_alone(network, reason):
    children = dict(network.named_children())
    with pytest.raises(ValueError, match=f"rewire: .*{reason}"):
        rewire(network)
    assert dict(network.named_children()) == children
    assert not any(
        isinstance(module, RewiredStage) or "forward" in vars(module) for module in network.modules()
    )


def test_rewiring_twice_is_refused():
    network = tiny()
    rewire(network)
    with pytest.raises(ValueError, match="layer1 is rewired already"):
        rewire(network)


def test_pre_activation_blocks_with_two_branches_form_one_recurrence():
    class Block(nn.Module):
        downsample, post_activation = None, False

        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.GELU())

        @property
        def branches(self):
            return (self.attention, self.mlp)

    blocks = [Block().double() for _ in range(3)]
    network = prepared(layer1=nn.Sequential(*blocks))
    assert [row.num_branches for row in rewire(network, beta=1.0, fixed_point_states=False)] == [2, 2, 2]
    x = torch.randn(5, 4, dtype=torch.float64)
    one = other = x  # Re2TAL's two streams: y1 = x1 + F(x2), y2 = x2 + G(y1)
    for b in blocks:
        one = one + b.attention(other)
        other = other + b.mlp(one)
    assert torch.allclose(network.layer1(x), (one + other) / 2, rtol=1e-12)


@pytest.mark.slow
def test_statistics_stay_frozen_inside_a_frozen_block():
    network = build_backbone("r2plus1d_18")
    rewire(network)
    before = [buffer.clone() for buffer in network.buffers()]
    with frozen_statistics(network):
        network(torch.randn(2, 3, 8, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
