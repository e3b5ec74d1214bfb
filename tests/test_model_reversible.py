"""The recurrence: its inverse, its gradients against plain autograd, its memory."""

from __future__ import annotations

import math

import pytest
import torch
from reversible_cases import conv_norm, distance, gradients, pre_norm_mlp, reference, saved_bytes, stage
from torch import Tensor, nn

from model.inverse_accuracy import smallest_beta
from model.recurrence import Recurrence
from model.reversible import Branch, run_stage
from tools.benchmarks.trackers import LiveBytes

BETAS = (0.4, 0.7, 1.0)


@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("beta", BETAS)
def test_inverse_recovers_the_previous_state(beta, post_activation):
    recurrence = Recurrence(beta, post_activation)
    previous, current, increment = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    following = recurrence.forward_step(previous, current, increment)
    # One rounding (1e-16), divided by beta twice.
    found = recurrence.inverse_step(current, following, increment)
    assert torch.allclose(found, previous, atol=1e-14, rtol=0)
    found = recurrence.previous_state(recurrence.output(current, following), following)
    assert torch.allclose(found, current, atol=1e-14, rtol=0)


def test_beta_zero_is_the_original_network_bit_for_bit():
    branches, x = stage(5, conv_norm, dtype=torch.float32), torch.randn(3, 6, 8)
    for activate in (None, torch.relu):
        torch.manual_seed(3)
        y = run_stage(branches, x, beta=0.0, post_activation=activate is not None)
        torch.manual_seed(3)
        expected = x
        for branch in branches:
            expected = expected + branch(expected)
            expected = expected if activate is None else activate(expected)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("beta", [0.0, *BETAS])
def test_leapfrog_has_the_gradients_of_plain_autograd(beta, post_activation):
    branches, x = stage(5), torch.randn(4, 6, 6, dtype=torch.float64)
    expected = gradients(branches, lambda x: reference(branches, x, beta, post_activation, True), x)
    options = {"beta": beta, "post_activation": post_activation, "leapfrog": True}
    for invert in (False, beta > 0):
        found = gradients(branches, lambda x, i=invert: run_stage(branches, x, **options, invert=i), x)
        # As in the test of gradients without leapfrog.
        assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) < 1e-9


@pytest.mark.parametrize("beta", [0.0, *BETAS])
def test_with_leapfrog_branches_that_ignore_x_add_up_as_in_the_original_network(beta):
    x, *terms = torch.randn(8, 3, 5, dtype=torch.float64)
    branches = [Branch(lambda _, term=term: term, nn.Identity()) for term in terms]
    y = run_stage(branches, x, beta=beta, leapfrog=True)
    assert torch.allclose(y, x + sum(terms), atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("kind", [pre_norm_mlp, conv_norm])
@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("beta", [0.0, *BETAS])
@pytest.mark.parametrize("num_branches", [1, 2, 5])
def test_gradients_equal_plain_autograd_with_dropout_on(num_branches, beta, post_activation, kind):
    branches, x = stage(num_branches, kind), torch.randn(4, 6, 6, dtype=torch.float64)
    expected = gradients(branches, lambda x: reference(branches, x, beta, post_activation), x)
    options = {"beta": beta, "post_activation": post_activation}
    for invert in (False, beta > 0):
        found = gradients(branches, lambda x, i=invert: run_stage(branches, x, **options, invert=i), x)
        # float64 rounding, 1e-16, times 0.4^-9 = 4e3 at worst, and the condition of the branches.
        assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) < 1e-9


@pytest.mark.parametrize("kind", [pre_norm_mlp, conv_norm])
@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("beta", [0.7, 1.0])
def test_float32_gradients_equal_plain_autograd_to_1e_5(beta, post_activation, kind):
    branches, x = stage(4, kind, width=16, dtype=torch.float32), torch.randn(4, 16, 16)
    expected = gradients(branches, lambda x: reference(branches, x, beta, post_activation), x)
    found = gradients(
        branches, lambda x: run_stage(branches, x, beta=beta, post_activation=post_activation, invert=True), x
    )
    together = [torch.cat([t.flatten() for t in tensors[1:]]) for tensors in (found, expected)]
    assert distance(*together) < 1e-5  # the figure we promise


@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("num_branches", [0, 1, 2])
def test_gradcheck_with_dropout_and_drop_path_on(num_branches, beta, post_activation):
    branches = stage(num_branches, width=3)

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same masks for every difference quotient
        return run_stage(branches, x, beta=beta, post_activation=post_activation, invert=True)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))


def test_no_branches_is_the_identity():
    x = torch.randn(2, 3)
    assert torch.equal(run_stage([], x, beta=1.0), x)


def test_one_sample_gives_what_it_gives_in_a_batch():
    branches = stage(4, dtype=torch.float32)
    for branch in branches:
        branch.module.eval()
    x = torch.randn(3, 6)
    # 1e-6: matrix products of other sizes sum in another order.
    assert torch.allclose(
        run_stage(branches, x[:1], beta=1.0), run_stage(branches, x, beta=1.0)[:1], atol=1e-6
    )


def test_masks_are_fresh_on_every_call():
    branches, x = stage(3), torch.randn(4, 6, dtype=torch.float64)
    assert not torch.equal(run_stage(branches, x, beta=1.0), run_stage(branches, x, beta=1.0))


def test_backward_leaves_the_global_generator_alone():
    branches, x = stage(3), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    y = run_stage(branches, x, beta=1.0)
    after_forward = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), after_forward)
    torch.manual_seed(5)
    reference(branches, x, 1.0, False)
    assert torch.equal(torch.get_rng_state(), after_forward)  # the forward drew what the plain one draws


@pytest.mark.parametrize("invert", [False, True])
def test_batch_norm_statistics_are_updated_once(invert):
    branches, others = stage(3, conv_norm), stage(3, conv_norm)
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    gradients(branches, lambda x: run_stage(branches, x, beta=0.7, invert=invert), x)
    gradients(others, lambda x: reference(others, x, 0.7, False), x)
    for branch, other in zip(branches, others, strict=True):
        for (name, buffer), expected in zip(
            branch.module.named_buffers(), other.module.buffers(), strict=True
        ):
            assert torch.allclose(buffer, expected, rtol=1e-12), name  # the mixing rounds once more


def test_saved_bytes_do_not_grow_with_depth():
    x = torch.randn(8, 6, requires_grad=True)
    two, twenty = (saved_bytes(stage(n, dtype=torch.float32), x, beta=1.0, invert=True) for n in (2, 20))
    assert two == twenty == 2 * x.nbytes


def test_live_bytes_do_not_grow_with_depth():
    peaks = []
    for n in (3, 20):
        branches, x = stage(n, dtype=torch.float32), torch.randn(64, 6, requires_grad=True)
        parameters = [p for branch in branches for p in branch.module.eval().parameters()]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        known = {t.untyped_storage().data_ptr() for p in parameters for t in (p, p.grad)}
        with LiveBytes(known) as live:
            run_stage(branches, x, beta=1.0).sum().backward()
        peaks.append(live.peak)
    assert peaks[1] == peaks[0]


@pytest.mark.gpu
@pytest.mark.parametrize("beta", [0.7, 1.0])
def test_on_a_gpu_gradients_equal_plain_autograd_and_memory_does_not_grow_with_depth(beta):
    peaks = []
    for n in (4, 16):
        branches = stage(n, dtype=torch.float64)
        for branch in branches:
            branch.module.cuda()
        x = torch.randn(512, 6, dtype=torch.float64, device="cuda")
        expected = gradients(branches, lambda x, b=branches: reference(b, x, beta, False), x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = gradients(branches, lambda x, b=branches: run_stage(b, x, beta=beta, invert=True), x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        # float64 rounding, 1e-16, times 0.7^-16 = 300, and the condition of the branches.
        assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) < 1e-9
    weights = sum(p.nbytes for branch in stage(12) for p in branch.module.parameters())
    assert peaks[1] < 1.1 * peaks[0] + 4 * weights  # gradients of 12 more branches, in blocks of 512 bytes


def test_checkpointing_keeps_one_state_per_branch():
    x = torch.randn(8, 6, requires_grad=True)
    for n in (2, 20):
        held = saved_bytes(stage(n, dtype=torch.float32), x, beta=1.0, invert=False)
        assert held == (n + 1) * x.nbytes


@pytest.mark.parametrize("post_activation", [False, True])
def test_stage_is_checkpointed_below_the_threshold_and_inverted_above(post_activation):
    branches, x = stage(12, dtype=torch.float32), torch.randn(8, 6, requires_grad=True)
    limit = smallest_beta(12, torch.float32, post_activation=post_activation)
    options = {"post_activation": post_activation}
    assert saved_bytes(branches, x, beta=limit + 1e-3, **options) == 2 * x.nbytes
    assert saved_bytes(branches, x, beta=limit - 1e-3, **options) == 13 * x.nbytes


def test_low_precision_branches_leave_the_states_in_float32():
    branches, x = stage(4, dtype=torch.bfloat16), torch.randn(4, 6, requires_grad=True)
    for branch in branches:
        branch.module.eval()
    y = run_stage(branches, x.bfloat16(), beta=1.0, invert=True)
    assert y.dtype == torch.float32
    y.sum().backward()
    found = x.grad.clone()
    x.grad = None
    run_stage(branches, x.bfloat16(), beta=1.0, invert=False).sum().backward()
    assert distance(found, x.grad) < 2**-7  # two roundings of bfloat16
    assert {p.grad.dtype for branch in branches for p in branch.module.parameters()} == {torch.bfloat16}


def test_autocast_branches_are_recomputed_under_autocast():
    branches, x = stage(3, dtype=torch.float32), torch.randn(4, 6)
    for branch in branches:
        branch.module.eval()

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run_stage(branches, x, beta=1.0, invert=True)

    def checkpointed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run_stage(branches, x, beta=1.0, invert=False)

    found, expected = gradients(branches, under_autocast, x), gradients(branches, checkpointed, x)
    assert found[0].dtype == torch.float32 and torch.equal(found[0], expected[0])
    # One rounding of bfloat16 may fall the other way; recomputed in float32 nearly every value would differ.
    assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) < 2**-8


def test_frozen_branches_pass_gradients_through():
    branches, x = stage(4), torch.randn(4, 6, dtype=torch.float64)
    expected = gradients(branches, lambda x: reference(branches, x, 0.7, False), x)
    for frozen in (branches[0], branches[2]):
        frozen.module.requires_grad_(False)
    found = gradients(branches, lambda x: run_stage(branches, x, beta=0.7, invert=True), x)
    for a, b in zip(found, expected, strict=True):
        assert a is None or distance(a, b) < 1e-12
    assert sum(a is None for a in found) == 2 * len(list(branches[0].module.parameters()))


@pytest.mark.parametrize("first", [0, 2])
def test_branches_are_trained_when_the_input_requires_no_gradient(first):
    branches, x = stage(4), torch.randn(4, 6, dtype=torch.float64)
    expected = gradients(branches, lambda x: reference(branches, x, 0.7, False), x)
    for branch in branches[:first]:
        branch.module.requires_grad_(False)
    found = gradients(branches, lambda x: run_stage(branches, x.detach(), beta=0.7, invert=True), x)
    assert found[1] is None
    trained = [(a, b) for a, b in zip(found[2:], expected[2:], strict=True) if a is not None]
    assert len(trained) == (4 - first) * len(list(branches[0].module.parameters()))
    assert max(distance(a, b) for a, b in trained) < 1e-12


def test_nothing_trainable_means_no_graph():
    branches, x = stage(3), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        assert not run_stage(branches, x.requires_grad_(), beta=1.0).requires_grad
    for branch in branches:
        branch.module.requires_grad_(False)
    assert not run_stage(branches, x.detach(), beta=1.0).requires_grad


def test_gradients_reach_the_aliases_of_functional_call():
    branches, x = stage(3), torch.randn(4, 6, dtype=torch.float64)
    expected = gradients(branches, lambda x: run_stage(branches, x, beta=1.0, invert=True), x)[2:]

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.modules_ = nn.ModuleList(branch.module for branch in branches)

        def forward(self, x):
            gradients([], lambda x: run_stage(branches, x, beta=1.0, invert=True), x)

    step = Step()
    aliases = {name: p.detach().requires_grad_() for name, p in step.named_parameters()}
    torch.func.functional_call(step, aliases, (x,))
    for alias, gradient in zip(aliases.values(), expected, strict=True):
        assert torch.equal(alias.grad, gradient)
    assert all(p.grad is None for p in step.parameters())


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match="beta: got .*want 0 <= beta <= 1"):
        run_stage(stage(1), torch.randn(2, 6), beta=beta)


def test_inverting_the_original_network_is_refused():
    with pytest.raises(ValueError, match="beta: got 0 with invert=True"):
        run_stage(stage(1), torch.randn(2, 6), beta=0.0, invert=True)
