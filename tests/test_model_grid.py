"""The fixed-point grid: powers of two are exact, sums of its points are exact, samples are independent."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.grid import HEADROOM, Grid, largest_of, power_of_two
from model.reversible import Branch, run_stage


@pytest.mark.parametrize(("dtype", "lowest"), [(torch.float32, -126), (torch.float64, -1022)])
def test_powers_of_two_are_exact(dtype, lowest):
    exponents = torch.arange(lowest, 1 - lowest)
    expected = torch.tensor([2.0**e for e in exponents.tolist()], dtype=torch.float64)
    assert torch.equal(power_of_two(exponents, dtype).double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-20, 1.0, 3e7])
def test_sums_and_differences_of_grid_points_are_exact(dtype, size):
    generator = torch.Generator().manual_seed(0)
    x, *branches = (size * torch.randn(3, 1000, dtype=dtype, generator=generator) for _ in range(9))
    grid = Grid.of(x)
    state, sums = grid.round(x), []
    for branch in map(grid.round, branches):
        sums.append(state)
        state = state + branch
    assert state.abs().max() < 2**HEADROOM * x.abs().max()
    for before, branch in zip(reversed(sums), reversed(branches), strict=True):
        state = state - grid.round(branch)
        assert torch.equal(state, before)


def test_rounding_is_to_the_nearest_point_and_fine():
    x = torch.randn(2, 500, generator=torch.Generator().manual_seed(1))
    rounded = Grid.of(x).round(x)
    assert (
        rounded - x
    ).abs().max() <= 2**-21 * 2 * x.abs().max()  # half a step; a step is 2^-20 of 2^ceil(log2)
    assert torch.equal(Grid.of(x).round(rounded), rounded)


def test_a_sample_does_not_depend_on_its_neighbours():
    x = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(2))
    x[1] *= 1e6
    together = Grid.of(x).round(x)
    assert torch.equal(together[:1], Grid.of(x[:1]).round(x[:1]))


def test_samples_of_zeros_and_no_samples_are_rounded_to_themselves():
    for x in (torch.zeros(2, 5), torch.zeros(0, 5), torch.zeros(2, 0)):
        assert torch.equal(Grid.of(x).round(x), x)


def test_what_is_not_finite_stays_not_finite():
    for value in (float("nan"), float("inf")):
        x = torch.tensor([[1.0, value]])
        assert not torch.isfinite(Grid.of(x).round(x)[0, 1])


def _mlp(depth: int, dtype: torch.dtype = torch.float32) -> list[Branch]:
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16), torch.nn.Dropout(0.2))
        for _ in range(depth)
    ]
    return [Branch(layer.to(dtype), layer) for layer in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stage_with_fixed_point_states_reconstructs_its_input_bit_for_bit(dtype):
    errors: list[torch.Tensor] = []
    branches = _mlp(48, dtype)
    x = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    run_stage(
        branches, x, beta=1.0, fixed_point_states=True, on_reconstruction_error=errors.append
    ).square().sum().backward()
    assert errors == [0]


def test_a_stage_with_fixed_point_states_has_the_gradients_of_the_rounded_recurrence():
    branches = _mlp(6)
    for branch in branches:
        branch.module.eval()
    parameters = [p for branch in branches for p in branch.module.parameters()]
    x = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(4))
    grid = Grid.of(x)
    previous = current = grid.round(x)
    for branch in branches:  # plain autograd; rounding passes the gradient on
        y = branch(current)
        previous, current = current, previous + (y + (grid.round(y.detach()) - y.detach()))
    slow = (current + previous) / 2
    fast = run_stage(branches, x, beta=1.0, fixed_point_states=True)
    assert torch.equal(slow.detach(), fast.detach())
    expected = torch.autograd.grad(slow.square().sum(), parameters)
    fast.square().sum().backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        # the same operations on the same numbers; sums over the batch may run in another order
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-5)


def _growing(depth: int) -> list[Branch]:
    """Branches that put out many times what they get, differently in each call, with batch statistics."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16, eps=1e-12), nn.Linear(16, 16), nn.Dropout(0.2))
        for _ in range(depth)
    ]
    return [Branch(layer, layer) for layer in layers]


def _gradients(branches: list[Branch], x: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The next random number, the stage output, gradients for x and parameters, statistics of batch norms."""
    options = {"widen_grid": True, **options}
    branches = copy.deepcopy(branches)
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = run_stage(branches, x, beta=1.0, **options)
    drawn = torch.rand(())
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    modules = [branch.module for branch in branches]
    parameters = [p.grad for module in modules for p in module.parameters()]
    return drawn, y, x.grad, *parameters, *(b for module in modules for b in module.buffers())


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_states_that_outgrow_their_input_are_exact_on_a_wider_grid(size):
    errors: list[Tensor] = []
    branches = _growing(8)
    x = size * torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
    found = _gradients(branches, x, fixed_point_states=True, on_reconstruction_error=errors.append)
    expected = _gradients(branches, x, fixed_point_states=True, store_activations=True)
    assert errors == [0]
    assert all(map(torch.equal, found, expected))
    off_the_grid = _gradients(branches, x, invert=False)
    assert torch.equal(found[0], off_the_grid[0]), "a stage that ran twice drew random numbers once"
    counts = [value for value in found if value.dtype == torch.int64]
    assert counts == [1] * len(branches), "its batch norms saw the batch once"
    with torch.no_grad():
        torch.manual_seed(1)
        again = run_stage(copy.deepcopy(branches), x, beta=1.0, fixed_point_states=True, widen_grid=True)
    assert torch.equal(again, found[1]), "with and without a graph"


def test_a_grid_is_widened_for_the_samples_alone_that_outgrew_it():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    grid, largest = Grid.of(x), largest_of(x)
    assert grid.widened(largest * 2**HEADROOM) is None
    wider = grid.widened(largest * torch.tensor([[1.0], [1000.0], [torch.inf]]))
    assert wider is not None
    assert torch.equal(wider.step[::2], grid.step[::2]), "what is not finite has no grid"
    least = 2 * 1000 * largest[1] / 2.0**23
    assert least <= wider.step[1] <= 2 * least and wider.shift[1] == 1.5 * 2.0**23 * wider.step[1]
