"""Soft-NMS against a plain loop, and at its edges."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.postprocess import PostSettings
from train.soft_nms import NmsMethod, soft_nms


def slow_nms(segments, scores, *, method, sigma, nms_tiou, min_score, max_keep):
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
            if tiou > nms_tiou:
                left[i] *= {"gaussian": math.exp(-tiou * tiou / sigma), "linear": 1 - tiou, "hard": 0.0}[
                    method
                ]
            if left[i] < min_score or left[i] <= 0:
                del left[i]
    return kept


@pytest.mark.parametrize("method", get_args(NmsMethod))
@pytest.mark.parametrize("nms_tiou", [0.0, 0.4])
def test_soft_nms_equals_a_plain_loop_in_every_row(method, nms_tiou):
    rng = np.random.default_rng(3)
    start = rng.random((6, 40)) * 10
    segments = np.stack([start, start + rng.random((6, 40)) * 5], -1)
    scores = rng.random((6, 40))
    rule = {"method": method, "sigma": 0.4, "nms_tiou": nms_tiou, "min_score": 0.05, "max_keep": 15}
    kept = soft_nms(segments, scores, **rule)
    for row in range(6):
        want = slow_nms(segments[row].tolist(), scores[row].tolist(), **rule)
        valid = kept.valid[row]
        assert kept.indices[row][valid].tolist() == [index for index, _ in want]
        # float64, another order of products
        np.testing.assert_allclose(kept.scores[row][valid], [score for _, score in want], atol=1e-12)
        assert np.array_equal(kept.segments[row][valid], segments[row][kept.indices[row][valid]])


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
    table = np.array(rows, dtype=np.float64)  # whole numbers: both sides round alike, ties stay ties
    segments = np.stack([table[..., 0], table[..., 0] + table[..., 1]], -1)
    scores = table[..., 2] / 8
    rule = {"method": method, "sigma": 0.4, "nms_tiou": 0.25, "min_score": 0.125, "max_keep": max_keep}
    kept = soft_nms(segments, scores, **rule)
    for i in range(len(rows)):
        want = slow_nms(segments[i].tolist(), scores[i].tolist(), **rule)
        assert kept.indices[i][kept.valid[i]].tolist() == [index for index, _ in want]
        assert kept.scores[i][kept.valid[i]].tolist() == [score for _, score in want]


def test_a_score_that_is_no_number_is_never_kept():
    kept = soft_nms(np.array([[[0.0, 1.0], [2.0, 3.0]]]), np.array([[np.nan, 0.5]]), max_keep=2)
    assert kept.indices[kept.valid].tolist() == [1]


def test_rows_in_groups_equal_each_row_alone(monkeypatch):
    scores, start = np.random.default_rng(0).random((2, 7, 20))
    segments = np.stack([start, start + 0.5], -1)
    whole = soft_nms(segments, scores, max_keep=9)
    monkeypatch.setattr("train.soft_nms._ELEMENTS_AT_ONCE", 20)
    alone = soft_nms(segments, scores, max_keep=9)
    assert np.array_equal(whole.indices, alone.indices) and np.array_equal(whole.scores, alone.scores)


def test_soft_nms_pads_with_a_mask():
    segments, scores = np.array([[[0.0, 1.0], [5.0, 6.0]]]), np.array([[0.9, 1e-6]])
    kept = soft_nms(segments, scores, min_score=0.01, max_keep=3)
    assert kept.valid.tolist() == [[True, False, False]]
    assert kept.scores[0, 1:].tolist() == [0, 0] and not kept.segments[0, 1:].any()
    assert kept.scores[0, 0] == pytest.approx(0.9)


def test_soft_nms_of_nothing_is_all_padding():
    kept = soft_nms(np.zeros((2, 0, 2)), np.zeros((2, 0)), max_keep=4)
    assert kept.segments.shape == (2, 4, 2) and not kept.valid.any()


def test_equal_scores_keep_their_order():
    segments = np.array([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]])
    assert soft_nms(segments, np.full((1, 3), 0.5), max_keep=3).indices.tolist() == [[0, 1, 2]]


def test_soft_nms_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"soft_nms: segments \(1, 3, 2\) and scores \(1, 4\), want"):
        soft_nms(np.ones((1, 3, 2)), np.ones((1, 4)))


@pytest.mark.parametrize(("name", "value"), [("nms", "greedy"), ("sigma", 0.0), ("max_detections", 0)])
def test_settings_that_soft_nms_cannot_follow_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        PostSettings.model_validate({name: value})
