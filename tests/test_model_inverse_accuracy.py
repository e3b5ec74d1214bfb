"""The smallest beta that is inverted: what is reconstructed there is within the tolerance of its dtype."""

from __future__ import annotations

import copy

import pytest
import torch
from reversible_cases import distance, stage
from torch import Tensor

from model.inverse_accuracy import NOISE_GAIN, TOLERANCE, smallest_beta
from model.reversible import Branch, run_stage


def reconstruction_error(num_branches: int, beta: float, dtype: torch.dtype, post_activation: bool) -> float:
    branches = stage(num_branches, width=64, dtype=dtype)
    for branch in branches:
        branch.module.eval()
    errors: list[Tensor] = []
    options = {"beta": beta, "post_activation": post_activation, "invert": True}
    x = torch.randn(16, 64, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    y = run_stage(branches, x, **options, on_reconstruction_error=errors.append)
    y.sum().backward()
    return errors[0].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("num_branches", [6, 12, 24])
def test_reconstruction_at_the_threshold_stays_within_the_tolerance(num_branches, post_activation, dtype):
    limit = smallest_beta(num_branches, dtype, post_activation=post_activation)
    assert reconstruction_error(num_branches, limit, dtype, post_activation) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("post_activation", [False, True])
@pytest.mark.parametrize("num_branches", [3, 12, 24])
def test_low_precision_reconstruction_stays_within_the_noise_of_the_branches(
    num_branches, post_activation, dtype
):
    beta = smallest_beta(num_branches, dtype, post_activation=post_activation)
    branches, x = stage(num_branches, width=64, dtype=dtype), torch.randn(16, 64)
    for branch in branches:
        branch.module.eval()
    exact = [Branch(m, m) for m in (copy.deepcopy(branch.module).float() for branch in branches)]
    options = {"beta": beta, "post_activation": post_activation}
    with torch.no_grad():
        noise = distance(run_stage(branches, x, **options), run_stage(exact, x, **options))
    error = reconstruction_error(num_branches, beta, dtype, post_activation)
    assert error < NOISE_GAIN * noise


def test_reconstruction_well_below_the_threshold_would_be_useless():
    # 12 branches at beta 0.3: 0.3^-12 = 2e6 roundings of 6e-8 each; that is why such a stage is not inverted.
    assert reconstruction_error(12, 0.3, torch.float32, False) > 100 * TOLERANCE[torch.float32]


def test_threshold_rises_with_depth_and_with_a_leaky_relu_to_invert():
    limits = [smallest_beta(n, torch.float32) for n in (1, 2, 6, 24, 48)]
    assert limits == sorted(limits) and 0 < limits[0] < limits[-1] < 1
    assert smallest_beta(6, torch.float32, post_activation=True) > smallest_beta(6, torch.float32)
    assert smallest_beta(6, torch.float64) < smallest_beta(6, torch.float32)


def test_reported_error_is_that_of_the_reconstruction():
    assert 0 < reconstruction_error(6, 0.5, torch.float32, False) < 1e-4
    assert reconstruction_error(6, 0.5, torch.float64, False) < 1e-13


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_stage_is_inverted_from_the_beta_of_the_dtype_that_autocast_computes_in(dtype):
    branches, errors = stage(3, dtype=torch.float32), list[Tensor]()
    limits = [smallest_beta(3, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert limits[0] < limits[1]
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        y = run_stage(branches, x, beta=sum(limits) / 2, on_reconstruction_error=errors.append)
    y.sum().backward()
    assert len(errors) == (dtype is None)  # what is not inverted has no error


@pytest.mark.parametrize("frozen", [0, 2])
def test_no_error_is_reported_of_states_that_are_not_reconstructed(frozen):
    branches, errors = stage(4), list[Tensor]()
    for branch in branches[:frozen]:
        branch.module.requires_grad_(False)
    x = torch.randn(4, 6, dtype=torch.float64)  # needs no gradient: the way back ends at the first trainable
    run_stage(branches, x, beta=0.7, on_reconstruction_error=errors.append).sum().backward()
    assert len(errors) == (frozen == 0) and all(error < 1e-12 for error in errors)
