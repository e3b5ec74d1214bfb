"""Segments: tIoU by hand, clamping, soft-NMS against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.segments import (
    NMS_METHODS,
    clamp_segments,
    from_centre_width,
    pairwise_tiou,
    soft_nms,
    to_centre_width,
)


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


@given(start=st.floats(-50, 50), end=st.floats(-50, 50))
@settings(deadline=None, max_examples=200)
def test_clamped_segments_are_inside_and_long_enough(start, end):
    low, high = clamp_segments(torch.tensor([[start, end]]), limit=16, min_width=0.5)[0].tolist()
    assert 0 <= low < high <= 16
    assert high - low >= 0.5 - 2e-6  # float32 rounding near 16


def test_a_valid_segment_is_not_moved_by_clamping():
    segments = torch.tensor([[0.0, 16.0], [3.25, 4.0]])
    assert torch.equal(clamp_segments(segments, limit=16, min_width=0.5), segments)


def slow_nms(segments, scores, *, method, sigma, threshold, min_score, max_keep):
    """One row, one pick at a time, in plain Python."""
    left = {i: s for i, s in enumerate(scores) if s >= min_score}
    kept = []
    while left and len(kept) < max_keep:
        best = max(left, key=lambda i: (left[i], -i))
        kept.append((best, left.pop(best)))
        for i in list(left):
            (s1, e1), (s2, e2) = segments[i], segments[best]
            inter = max(0.0, min(e1, e2) - max(s1, s2))
            union = e1 - s1 + e2 - s2 - inter
            tiou = inter / union if union > 0 else 0.0
            if tiou > threshold:
                left[i] *= {"gaussian": math.exp(-tiou * tiou / sigma), "linear": 1 - tiou, "hard": 0.0}[
                    method
                ]
            if left[i] < min_score or left[i] <= 0:
                del left[i]
    return kept


@pytest.mark.parametrize("method", NMS_METHODS)
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_soft_nms_equals_a_plain_loop_in_every_row(method, threshold):
    generator = torch.Generator().manual_seed(3)
    start = torch.rand(2, 1, 40, generator=generator, dtype=torch.float64) * 10
    segments = torch.stack(
        [start, start + torch.rand(2, 1, 40, generator=generator, dtype=torch.float64) * 5], -1
    )
    scores = torch.rand(2, 3, 40, generator=generator, dtype=torch.float64)
    rule = {"method": method, "sigma": 0.4, "threshold": threshold, "min_score": 0.05, "max_keep": 15}
    kept = soft_nms(segments, scores, **rule)
    for video in range(2):
        for label in range(3):
            want = slow_nms(segments[video, 0].tolist(), scores[video, label].tolist(), **rule)
            valid = kept.valid[video, label]
            assert kept.indices[video, label][valid].tolist() == [index for index, _ in want]
            got = kept.scores[video, label][valid]
            want_scores = torch.tensor([score for _, score in want], dtype=torch.float64)
            assert torch.allclose(got, want_scores, atol=1e-12)  # float64, another order of products
            assert torch.equal(
                kept.segments[video, label][valid], segments[video, 0][kept.indices[video, label][valid]]
            )


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(0, 8)), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    method=st.sampled_from(["linear", "hard"]),
    max_keep=st.integers(1, 7),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_soft_nms_equals_the_loop_where_segments_and_scores_repeat(rows, method, max_keep):
    table = torch.tensor(rows, dtype=torch.float64)  # whole numbers: both sides round alike, ties stay ties
    segments = torch.stack([table[..., 0], table[..., 0] + table[..., 1]], -1)
    scores = table[..., 2] / 8
    rule = {"method": method, "sigma": 0.4, "threshold": 0.25, "min_score": 0.125, "max_keep": max_keep}
    kept = soft_nms(segments, scores, **rule)
    for i in range(len(rows)):
        want = slow_nms(segments[i].tolist(), scores[i].tolist(), **rule)
        assert kept.indices[i][kept.valid[i]].tolist() == [index for index, _ in want]
        assert kept.scores[i][kept.valid[i]].tolist() == [score for _, score in want]


def test_a_score_that_is_no_number_is_never_kept():
    kept = soft_nms(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([float("nan"), 0.5]), max_keep=2)
    assert kept.indices[kept.valid].tolist() == [1]


def test_rows_walked_in_groups_equal_rows_walked_alone(monkeypatch):
    scores, start = torch.rand(7, 20), torch.rand(7, 20)
    segments = torch.stack([start, start + 0.5], -1)
    whole = soft_nms(segments, scores, max_keep=9)
    monkeypatch.setattr("model.segments._ELEMENTS_AT_ONCE", 20)
    alone = soft_nms(segments, scores, max_keep=9)
    assert torch.equal(whole.indices, alone.indices) and torch.equal(whole.scores, alone.scores)


def test_soft_nms_pads_with_a_mask():
    kept = soft_nms(
        torch.tensor([[0.0, 1.0], [5.0, 6.0]]), torch.tensor([0.9, 1e-6]), min_score=0.01, max_keep=3
    )
    assert kept.valid.tolist() == [True, False, False]
    assert kept.scores[1:].tolist() == [0, 0] and kept.segments[1:].abs().sum() == 0
    assert kept.scores[0] == pytest.approx(0.9)


def test_soft_nms_of_nothing_is_all_padding():
    kept = soft_nms(torch.zeros(2, 0, 2), torch.zeros(2, 0), max_keep=4)
    assert kept.segments.shape == (2, 4, 2) and not kept.valid.any()


def test_equal_scores_keep_their_order():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert soft_nms(segments, torch.full((3,), 0.5), max_keep=3).indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "change", [{"method": "greedy"}, {"sigma": 0.0}, {"max_keep": 0}, {"scores": torch.rand(4)}]
)
def test_soft_nms_refuses_wrong_input_by_name(change):
    arguments = {"segments": torch.rand(3, 2), "scores": torch.rand(3)} | change
    with pytest.raises(ValueError, match="soft_nms: "):
        soft_nms(arguments.pop("segments"), arguments.pop("scores"), **arguments)
