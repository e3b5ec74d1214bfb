"""1-D RoI align against a slow obvious version: thousands of samples of the interpolated signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.detector.align import align_weights, expand_segments, pool_bins


def roi_align(features: Tensor, segments: Tensor, num_bins: int) -> Tensor:
    """(B, C, T) by (B, P, 2) -> (B, P, C, num_bins), as the stages of the detector do it."""
    return pool_bins(features, align_weights(segments, features.shape[2], num_bins))


def signal(row: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The features of one channel at x: linear between step centres, held to the edges, 0 beyond."""
    value = np.interp(x, np.arange(len(row)) + 0.5, row)
    return np.where((x >= 0) & (x <= len(row)), value, 0.0)


def slow_align(features: np.ndarray, segment: tuple[float, float], num_bins: int) -> np.ndarray:
    """(C, T) -> (C, num_bins): the mean of 4,000 midpoint samples per bin."""
    start, end = segment
    edges = np.linspace(start, end, num_bins + 1)
    bins = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        x = low + (np.arange(4000) + 0.5) / 4000 * (high - low)
        bins.append([signal(row, x).mean() for row in features])
    return np.array(bins).T


CASES = [
    (2.0, 6.0),
    (0.0, 8.0),
    (3.3, 3.9),
    (-4.0, 12.0),
    (-3.0, 1.0),
    (6.5, 11.0),
    (-9.0, -2.0),
    (9.0, 12.0),
]


@pytest.mark.parametrize("num_bins", [1, 4, 7])
@pytest.mark.parametrize("segment", CASES)
def test_align_equals_a_slow_average_inside_and_outside(segment, num_bins):
    features = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))
    got = roi_align(features, torch.tensor([[segment]]), num_bins)[0, 0].numpy()
    want = slow_align(features[0].double().numpy(), segment, num_bins)
    np.testing.assert_allclose(
        got, want, atol=2e-3
    )  # the slow one: 4,000 samples, a jump of O(1) at the edge


def test_a_segment_of_no_length_gets_the_value_at_its_point():
    features = torch.arange(8.0)[None, None]  # value x - 0.5 at x
    got = roi_align(features, torch.tensor([[[3.7, 3.7], [5.0, 2.0]]]), 4)
    assert torch.allclose(got[0, 0], torch.full((1, 4), 3.2), atol=0.01)  # bins are widened to 0.002 steps
    assert torch.allclose(got[0, 1], torch.full((1, 4), 4.5), atol=0.01)  # backwards: a point at its start


def test_no_proposals_give_no_features():
    assert roi_align(torch.randn(2, 3, 8), torch.zeros(2, 0, 2), 4).shape == (2, 0, 3, 4)


def test_a_bin_over_whole_steps_of_a_constant_signal_is_that_constant():
    got = roi_align(torch.full((1, 1, 8), 2.5), torch.tensor([[[0.0, 8.0], [1.5, 6.25]]]), 5)
    assert torch.allclose(got, torch.full_like(got, 2.5), atol=1e-5)


def test_the_weights_of_a_bin_sum_to_its_share_inside():
    weights = align_weights(torch.tensor([[-4.0, 4.0], [1.0, 3.0]]), 8, 2)
    assert torch.allclose(weights.sum(-1), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), atol=1e-5)


def test_each_video_uses_its_own_features_and_segments():
    features = torch.stack([torch.zeros(1, 8), torch.ones(1, 8)])
    segments = torch.tensor([[[1.0, 3.0]], [[2.0, 5.0]]])
    assert roi_align(features, segments, 3).flatten(1).mean(1).tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


def test_align_is_differentiable_in_the_features():
    features = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, torch.tensor([[[1.0, 4.0]]]), 3), features)


def test_bfloat16_features_stay_bfloat16():
    got = roi_align(torch.ones(1, 2, 6).bfloat16(), torch.tensor([[[1.0, 4.0]]]), 3)
    assert got.dtype == torch.bfloat16 and got.float().sub(1).abs().max() < 0.02  # 8 bits of mantissa


def test_expanding_lengthens_both_sides():
    assert expand_segments(torch.tensor([[2.0, 6.0]]), 0.5).tolist() == [[0.0, 8.0]]
