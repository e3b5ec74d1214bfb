"""Blocks of any source, proven residual by tracing: their branches add up to the blocks themselves."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from foreign_blocks import (
    Basic,
    Bottleneck,
    D,
    Inverted,
    OwnParameters,
    Parallel,
    PreNorm,
    RandomSkip,
    Wrapped,
    image,
    tokens,
)
from torch import Tensor, nn
from torch.nn import functional as F

from model.reversible import run_stage
from model.tracing.chain import chains
from model.tracing.observe import observe
from model.tracing.residual import Residual, residual_block

GOOD = [
    pytest.param(Basic, image, 1, True, id="basic"),
    pytest.param(lambda: Basic(nn.Identity()), image, 1, True, id="identity-shortcut"),
    pytest.param(Bottleneck, image, 1, True, id="bottleneck"),
    pytest.param(Inverted, image, 1, False, id="mobilenet"),
    pytest.param(PreNorm, tokens, 2, False, id="pre-norm"),
    pytest.param(lambda: Parallel(False), tokens, 1, False, id="gpt-j"),
    pytest.param(lambda: Parallel(True), tokens, 1, False, id="parallel"),
    pytest.param(OwnParameters, tokens, 1, False, id="own-parameters"),
    pytest.param(Wrapped, tokens, 2, False, id="wrapped"),
]


def proven(block: nn.Module) -> Residual:
    found = residual_block(block)
    assert isinstance(found, Residual), found
    return found


def added_up(residual: Residual, x: Tensor) -> Tensor:
    for branch in residual.branches:
        x = x + branch(x)
    return F.relu(x) if residual.post_activation else x


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "example", "num_branches", "post_activation"), GOOD)
def test_branches_add_up_to_the_block_itself(build, example, num_branches, post_activation, training):
    torch.manual_seed(0)
    block, x = build().train(training), example()
    plain = copy.deepcopy(block)
    names = list(block.state_dict())
    residual = proven(block)
    assert (len(residual.branches), residual.post_activation) == (num_branches, post_activation)
    torch.manual_seed(3)
    expected = plain(x.clone())
    torch.manual_seed(3)
    found = added_up(residual, x)
    if isinstance(block, Parallel) and block.first:  # (x + f) + g became x + (f + g): roundings
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)
    assert list(block.state_dict()) == names
    for buffer, other in zip(block.buffers(), plain.buffers(), strict=True):  # batch norm counted once
        assert torch.equal(buffer, other)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize(("build", "example", "num_branches", "post_activation"), GOOD)
def test_gradients_through_the_recurrence_equal_plain_autograd(
    build, example, num_branches, post_activation, beta
):
    torch.manual_seed(0)
    block, x = build().double(), example().double().requires_grad_()
    plain, x2 = copy.deepcopy(block), example().double().requires_grad_()
    residual = proven(block)
    torch.manual_seed(3)
    y = run_stage(residual.branches, x, beta=beta, post_activation=post_activation)
    y.square().sum().backward()
    torch.manual_seed(3)
    y2 = plain(x2 + 0) if beta == 0 else slow_stage(proven(plain), x2)
    y2.square().sum().backward()
    assert torch.allclose(y, y2, rtol=1e-12, atol=1e-12)  # roundings of float64, a few dozen operations
    assert torch.allclose(x.grad, x2.grad, rtol=1e-9, atol=1e-10)
    for p, p2 in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, p2.grad, rtol=1e-9, atol=1e-10)


def slow_stage(residual: Residual, x: Tensor) -> Tensor:
    """Beta 1 written out: x_{i+1} = x_{i-1} + F_i(x_i), the ReLU inside the branch being none at slope 0."""
    previous = current = x
    for branch in residual.branches:
        y = branch(current)
        previous, current = current, previous + (F.relu(y) if residual.post_activation else y)
    return (current + previous) / 2


def test_a_branch_holds_no_copy_of_a_parameter():
    block = OwnParameters().eval()
    residual, x = proven(block), tokens()
    first = residual.branches[0](x)
    with torch.no_grad():
        block.gamma.zero_()
    assert first.any() and not residual.branches[0](x).any()
    aliases = {name: torch.ones_like(p) for name, p in block.named_parameters()}

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return residual.branches[0](x)

    found = torch.func.functional_call(Owner(), {f"block.{k}": v for k, v in aliases.items()}, (x,))
    expected = F.linear(x + block.position, aliases["fc.weight"], aliases["fc.bias"]).clamp(max=0.5)
    assert torch.equal(found, expected)


def test_modules_within_a_branch_are_called_whole_so_that_their_hooks_fire():
    block, seen = PreNorm(), []
    residual = proven(block)
    for name in ("attn", "ls1", "mlp", "drop_path"):
        block.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.append(name))
    block.eval()
    for branch in residual.branches:
        branch(tokens())
    assert {"attn", "ls1", "mlp"} <= set(seen)
    block.train().drop_path.probability = 0.0  # read at run time
    residual.branches[0](tokens())
    assert "drop_path" in seen


def test_a_copied_residual_runs_the_copied_block():
    block = PreNorm().eval()
    residual = proven(block)
    other = copy.deepcopy(residual)
    assert other.branches[0].module is other.branches[1].module is not block
    with torch.no_grad():
        other.branches[0].module.ls1.gamma.zero_()
    x = tokens()
    assert not other.branches[0](x).any() and residual.branches[0](x).any()


def test_mixed_training_flags_are_traced_when_they_are_met():
    block = PreNorm()
    residual, x = proven(block), tokens()
    block.train()
    block.drop_path.eval()
    block.mlp.eval()
    torch.manual_seed(3)
    expected = block(x)
    torch.manual_seed(3)
    assert torch.equal(added_up(residual, x), expected)


class Weighted(nn.Module):
    """Numbers of the block's own, which a schedule may change."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.alpha, self.gated, self.p = nn.Linear(D, D), 1.0, True, 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.fc(x), self.p, self.training)
        return x + self.alpha * (y.sigmoid() if self.gated else y)


@pytest.mark.parametrize("change", [{"alpha": 0.25}, {"gated": False}, {"p": 0.5}])
def test_numbers_that_change_after_rewiring_count_as_they_are(change):
    block, x = Weighted(), tokens()
    residual = proven(block)
    assert torch.equal(added_up(residual, x), block(x))
    vars(block).update(change)
    torch.manual_seed(3)
    expected = block(x)
    torch.manual_seed(3)
    assert torch.equal(added_up(residual, x), expected)


def test_numbers_that_an_engine_adds_later_are_not_traced_again():
    block, x = Weighted(), tokens()
    residual = proven(block)
    for count in range(3):  # as ZeRO-3 counts gradients
        block.grads_remaining = block.fc.grads_remaining = count
        residual.branches[0](x)
    assert residual.traced is not None and len(residual.traced.programs) == 2  # of training and evaluation


def test_hooks_that_an_engine_adds_later_do_not_disturb_new_flags():
    block, seen = PreNorm(), []
    residual, x = proven(block), tokens()
    for module in block.modules():  # ZeRO-3 gathers in such hooks; they expect tensors
        module.register_forward_pre_hook(lambda m, args: seen.append(float(args[0].detach().sum())))
    block.train().norm1.eval()
    torch.manual_seed(3)
    expected = block(x)
    torch.manual_seed(3)
    assert torch.equal(added_up(residual, x), expected) and seen
    assert all(len(module._forward_pre_hooks) == 1 for module in block.modules())


def test_tracing_leaves_generators_flags_and_modules_as_they_were():
    block = nn.Sequential(PreNorm(), RandomSkip())
    block[0].mlp.eval()
    flags = [module.training for module in block.modules()]
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    residual_block(block[0])
    residual_block(block[1])
    assert [module.training for module in block.modules()] == flags
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert state[2] == np.random.get_state()[1].tobytes()


def test_the_first_run_changes_neither_statistics_nor_random_numbers():
    block = PreNorm()
    residual, x = proven(block), tokens()
    torch.manual_seed(3)
    first = residual.branches[0](x)
    torch.manual_seed(3)
    assert torch.equal(residual.branches[0](x), first)
    block, seen = Basic(), []
    residual = proven(block)
    block.bn1.register_forward_hook(lambda *_: seen.append(block.bn1.track_running_stats))
    residual.branches[0](image())
    residual.branches[0](image())
    assert seen == [False, False, True, True]  # itself, its branches, then two runs that count
    assert block.bn1.num_batches_tracked == 2


def test_autocast_keeps_its_gradients_after_the_first_run():
    block, plain = PreNorm().eval(), None
    plain = copy.deepcopy(block)
    residual, x = proven(block), tokens()
    for own, run in ((block, lambda: added_up(residual, x)), (plain, lambda: plain(x))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run().float().square().sum().backward()
        assert all(p.grad is not None for p in own.parameters())
    for p, p2 in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, p2.grad, rtol=0.05, atol=0.05 * p2.grad.abs().max())  # bfloat16 twice


def test_meta_tensors_run_without_the_comparison():
    block = PreNorm().to("meta")
    assert proven(block).branches[0](torch.empty(3, 6, D, device="meta")).shape == (3, 6, D)


@pytest.fixture(scope="module")
def video_mae():
    import transformers  # takes 3 s: for these tests only

    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return transformers.VideoMAEModel(config)


@pytest.mark.slow
def test_layers_of_hugging_faces_video_mae_have_two_branches(video_mae):
    layers, x = video_mae.encoder.layer, torch.randn(2, 4, 16)
    for training in (True, False):
        video_mae.train(training)
        for layer in layers:
            residual = proven(layer)
            assert len(residual.branches) == 2 and not residual.post_activation
            torch.manual_seed(3)
            expected = layer(x)
            torch.manual_seed(3)
            assert torch.equal(added_up(residual, x), expected)
    names = tuple(f"encoder.layer.{i}" for i in range(3))
    for found in (chains(video_mae, names), observe(video_mae, names, torch.randn(1, 4, 3, 16, 16))):
        (chain,) = found
        assert chain.blocks == names and chain.reason is None
