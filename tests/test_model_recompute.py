"""Recomputation repeats a call exactly: same values, same random numbers, no second side effect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.recompute import RngState, frozen_statistics, recompute
from tools.benchmarks.trackers import SavedBytes

CPU = torch.device("cpu")


def noisy_block() -> nn.Sequential:
    """Batch norm and dropout: everything that could differ the second time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Conv1d(8, 4, 1)
    )


def run(
    block: nn.Module, function, x: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Output, gradients by name (the input's is "x"), and a number drawn afterwards; from one seed."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = function(x)
    y.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return y.detach(), {"x": x.grad, **gradients}, torch.rand(1)


def test_replay_repeats_the_numbers_and_leaves_the_generator_alone():
    state = RngState.capture(CPU)
    drawn = torch.rand(3)
    before = torch.get_rng_state()
    with state.replay():
        assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_replay_restores_the_generator_after_an_error():
    state = RngState.capture(CPU)
    torch.rand(3)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), state.replay():
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_state_is_current_until_a_number_is_drawn():
    state = RngState.capture(CPU)
    assert state.is_current()
    torch.rand(1)
    assert not state.is_current()


def test_frozen_statistics_normalises_with_the_batch_and_changes_nothing():
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4) * 3 + 1
    expected = norm(x)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with frozen_statistics(norm):
        assert torch.equal(norm(x), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())
    norm(x)
    assert norm.num_batches_tracked == 2  # and its statistics move again afterwards


def test_frozen_statistics_leaves_norms_in_evaluation_mode_alone():
    norm, x = nn.BatchNorm1d(4).eval(), torch.randn(8, 4) * 3 + 1
    with frozen_statistics(norm):
        assert torch.equal(norm(x), norm(x))
        assert torch.allclose(norm(x), x, atol=1e-4)  # running mean 0, variance 1, eps 1e-5


def test_recomputed_call_equals_plain_autograd_bit_for_bit():
    plain, again = noisy_block(), noisy_block()
    x = torch.randn(5, 4, 7)
    y, gradients, after = run(plain, plain, x)
    y2, gradients2, after2 = run(again, lambda x: recompute(again, again, x), x)
    assert torch.equal(y, y2)
    assert torch.equal(after, after2)  # the generator ends where it would have
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients2[name]), name
    for (name, buffer), other in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(buffer, other), name  # statistics were updated once


def test_only_the_input_is_kept():
    block, x = noisy_block(), torch.randn(5, 4, 7, requires_grad=True)
    with SavedBytes({p.data_ptr() for p in block.parameters()}) as saved:
        y = recompute(block, block, x)
    assert saved.now == x.nbytes
    y.sum().backward()
    assert saved.now == 0


def test_parameters_are_trained_when_the_input_requires_no_gradient():
    block = noisy_block()
    recompute(block, block, torch.randn(5, 4, 7)).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_frozen_block_passes_the_gradient_on_and_keeps_none():
    block, x = noisy_block().requires_grad_(False), torch.randn(5, 4, 7, requires_grad=True)
    recompute(block, block, x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in block.parameters())


def test_nothing_trainable_means_no_graph():
    block = noisy_block().requires_grad_(False)
    assert not recompute(block, block, torch.randn(5, 4, 7)).requires_grad
    block.requires_grad_(True)
    with torch.no_grad():
        assert not recompute(block, block, torch.randn(5, 4, 7)).requires_grad


def test_gradients_reach_the_aliases_of_functional_call():
    block, x = noisy_block().eval(), torch.randn(5, 4, 7)
    recompute(block, block, x).square().sum().backward()
    expected = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            recompute(self.block, self.block, x).square().sum().backward()

    aliases = {f"block.{name}": p.detach().requires_grad_() for name, p in block.named_parameters()}
    torch.func.functional_call(Step(), aliases, (x,))
    for alias, gradient in zip(aliases.values(), expected, strict=True):
        assert torch.equal(alias.grad, gradient)
    assert all(p.grad is None for p in block.parameters())


def test_autocast_is_entered_again_in_the_backward():
    block, seen = nn.Linear(4, 4), []

    def function(x):
        y = block(x)
        seen.append(y.dtype)
        return y

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = recompute(function, block, torch.randn(2, 4, requires_grad=True))
    y.float().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_a_second_derivative_is_refused():
    block, x = noisy_block().eval(), torch.randn(5, 4, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(recompute(block, block, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
