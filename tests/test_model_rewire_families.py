"""Every family at full depth, rewired: plain at beta 0, plain autograd's gradients at beta 1, saved bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import model.rewire
import model.rewired_stage
from model.backbones import build_backbone
from model.grid import Grid
from model.recurrence import Recurrence
from model.reversible import Branch
from model.rewire import rewire, rewired_stages, set_beta
from tools.benchmarks.trackers import LiveBytes, SavedBytes

DEEP = {  # the deepest of each family that a test can afford, and a clip just large enough for its strides
    "r2plus1d_34": (3, 8, 32, 32),
    "slowfast_101": (3, 8, 64, 64),
    "tsm_r50": (3, 4, 64, 64),
    "video_swin_s": (3, 8, 64, 64),
    "videomae_b": (3, 4, 64, 64),
}


def build(name: str) -> nn.Module:
    """With drop-path on and the batch norms' stored statistics, as in training."""
    torch.manual_seed(0)
    network = build_backbone(name).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if not module.weight.any():  # SlowFast's branches start as nothing: too easy
                nn.init.constant_(module.weight, 0.5)
    return network


def clip_for(name: str, n: int = 2) -> Tensor:
    return torch.randn(n, *DEEP[name], generator=torch.Generator().manual_seed(1))


def features_and_gradients(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)  # the same drop-path
    y = network.pool(network(x))
    network.zero_grad(set_to_none=True)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def plain_stage(
    branches: list[Branch],
    x: Tensor,
    *,
    beta: float,
    post_activation: bool,
    fixed_point_states: bool,
    **_: object,
) -> Tensor:
    """The recurrence under plain autograd; the grid's rounding passes the gradient on."""
    recurrence, grid = Recurrence(beta, post_activation), Grid.of(x)

    def rounded(y: Tensor) -> Tensor:
        if not fixed_point_states:
            return y
        return y + (grid.round(y.detach()) - y.detach())

    previous = current = rounded(x)
    for branch in branches:
        increment = rounded(recurrence.branch_output(branch, current))
        previous, current = current, recurrence.forward_step(previous, current, increment)
    return recurrence.output(previous, current)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_float32_gradients_at_full_depth_are_those_of_plain_autograd(name, monkeypatch):
    network, x = build(name), clip_for(name)
    table = rewire(network)
    y, found = features_and_gradients(network, x)
    assert all(stage.reconstruction_error in (None, 0) for stage in rewired_stages(network))
    assert any(stage.reconstruction_error is not None for stage in rewired_stages(network))
    assert sum(row.kind == "reversible" for row in table) >= 10

    for module in (model.rewire, model.rewired_stage):
        monkeypatch.setattr(module, "recompute", lambda function, module, x: function(x))
    monkeypatch.setattr(model.rewired_stage, "run_stage", plain_stage)
    plain = build(name)
    rewire(plain)
    y2, expected = features_and_gradients(plain, x)
    assert torch.equal(y, y2)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        error = torch.linalg.vector_norm(found[parameter] - gradient)
        # The same operations on the same numbers; sums over branches may run in another order.
        assert error <= 1e-5 * torch.linalg.vector_norm(gradient), parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slowfast_50", "tsm_r18", "video_swin_t", "videomae_s"])
def test_beta_zero_is_the_plain_network_bit_for_bit(name):
    network = build(name)
    x = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.manual_seed(2)
        expected = network(x)
        rewire(network, beta=0.0)
        torch.manual_seed(2)
        assert torch.equal(network(x), expected)
        set_beta(network, 1.0)
        assert not torch.allclose(network(x), expected, rtol=1e-3)


def saved_mb(network: nn.Module, x: Tensor) -> float:
    ignored = [*network.parameters(), *network.buffers(), x]
    with SavedBytes({tensor.untyped_storage().data_ptr() for tensor in ignored}) as saved:
        y = network.pool(network(x))
    held = saved.now / 1e6
    assert y.requires_grad
    return held


@pytest.mark.slow
def test_video_swin_t_saves_at_most_40_mb_for_32x112x112():
    network = build("video_swin_t")
    rewire(network)
    assert saved_mb(network, torch.randn(1, 3, 32, 112, 112)) <= 40  # 18.4 measured; plain 818


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r2plus1d_34", "slowfast_101"])
def test_deep_networks_save_at_most_8_percent_of_plain(name):
    network, x = build(name), torch.randn(1, 3, 16, 64, 64)
    plain = saved_mb(network, x)
    rewire(network)
    assert saved_mb(network, x) <= 0.08 * plain


def peak_bytes(plain: nn.Module, size: int, stored: tuple[str, ...] | None) -> int:
    """The most bytes alive at one time in a step, above parameters and their gradients."""
    network, x = copy.deepcopy(plain), torch.randn(1, 3, 8, size, size)
    rewire(network, stored=stored)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    known = [*network.parameters(), *network.buffers(), *(p.grad for p in network.parameters()), x]
    with LiveBytes({tensor.untyped_storage().data_ptr() for tensor in known}) as live:
        network.pool(network(x)).square().sum().backward()
    return live.peak


# In smaller clips the gradients of the last weights outweigh what is stored.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("r2plus1d_18", 48),
        *(pytest.param(*tsm, marks=pytest.mark.ci) for tsm in (("tsm_r18", 112), ("tsm_r50", 96))),
    ],
)
def test_what_a_family_chooses_to_store_leaves_the_peak_where_it_is(name, size):
    network = build(name)
    chosen, none, stem = (peak_bytes(network, size, stored) for stored in (None, (), ("stem",)))
    assert chosen == none < stem
