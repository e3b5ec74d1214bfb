"""Segments: tIoU by hand, clamping, conversions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.segments import clamp_segments, from_centre_width, pairwise_tiou, to_centre_width


def test_tiou_of_hand_drawn_pairs():
    first = torch.tensor([[0.0, 4.0], [2.0, 3.0], [5.0, 5.0]])
    second = torch.tensor([[0.0, 4.0], [2.0, 6.0], [4.0, 8.0], [5.0, 5.0]])
    want = torch.tensor([[1.0, 2 / 6, 0.0, 0.0], [1 / 4, 1 / 4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(pairwise_tiou(first, second), want, atol=1e-6)  # float32 rounding


def test_tiou_broadcasts_over_videos_and_takes_no_actions():
    anchors = torch.rand(3, 5, 2).cumsum(-1)
    assert pairwise_tiou(anchors, torch.zeros(3, 0, 2)).shape == (3, 5, 0)
    assert pairwise_tiou(anchors[0], anchors).shape == (3, 5, 5)
    assert pairwise_tiou(anchors, anchors).diagonal(dim1=1, dim2=2).allclose(torch.ones(3, 5))


def test_tiou_of_bfloat16_segments_is_float32():
    assert pairwise_tiou(torch.rand(2, 2).bfloat16(), torch.rand(2, 2).bfloat16()).dtype == torch.float32


def test_centre_and_width_go_there_and_back():
    segments = torch.rand(10, 2, dtype=torch.float64).cumsum(-1)
    assert torch.allclose(from_centre_width(to_centre_width(segments)), segments, atol=1e-12)


@pytest.mark.slow
@given(start=st.floats(-50, 50), end=st.floats(-50, 50))
@settings(deadline=None, max_examples=200)
def test_clamped_segments_are_inside_and_long_enough(start, end):
    low, high = clamp_segments(torch.tensor([[start, end]]), limit=16, min_width=0.5)[0].tolist()
    assert 0 <= low < high <= 16
    assert high - low >= 0.5 - 2e-6  # float32 rounding near 16


def test_a_valid_segment_is_not_moved_by_clamping():
    segments = torch.tensor([[0.0, 16.0], [3.25, 4.0]])
    assert torch.equal(clamp_segments(segments, limit=16, min_width=0.5), segments)
