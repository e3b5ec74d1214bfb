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


def slow_nms_of_labels(segments, scores, labels, *, max_keep, **rule):
    """Every label to its end, then the best of all; (index, score) each."""
    kept = []
    for label in sorted(set(labels)):
        rows = [i for i, other in enumerate(labels) if other == label]
        picks = slow_nms([segments[i] for i in rows], [scores[i] for i in rows], max_keep=max_keep, **rule)
        kept += [(rows[index], score) for index, score in picks]
    return sorted(kept, key=lambda pick: -pick[1])[:max_keep]  # stable


@pytest.mark.parametrize("method", get_args(NmsMethod))
@pytest.mark.parametrize("nms_tiou", [0.0, 0.4])
@pytest.mark.parametrize("max_keep", [1, 15, 1000])
def test_soft_nms_equals_a_plain_loop_over_the_labels(method, nms_tiou, max_keep):
    rng = np.random.default_rng(3)
    start = rng.random(240) * 10
    segments, scores = np.stack([start, start + rng.random(240) * 5], -1), rng.random(240)
    labels = rng.choice([0, 1, 4, 7, 9], 240)
    rule = {"method": method, "sigma": 0.4, "nms_tiou": nms_tiou, "min_score": 0.05, "max_keep": max_keep}
    indices, picked = soft_nms(segments, scores, labels, **rule)
    want = slow_nms_of_labels(segments.tolist(), scores.tolist(), labels.tolist(), **rule)
    assert indices.tolist() == [index for index, _ in want]
    # float64, another order of products
    np.testing.assert_allclose(picked, [score for _, score in want], atol=1e-12)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(0, 8), st.integers(0, 2)), max_size=18
    ),
    method=st.sampled_from(["linear", "hard"]),
    max_keep=st.integers(1, 7),
)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_soft_nms_equals_the_loop_where_segments_and_scores_repeat(rows, method, max_keep):
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)  # both sides round alike, ties stay ties
    segments = np.stack([table[:, 0], table[:, 0] + table[:, 1]], -1)
    scores, labels = table[:, 2] / 8, table[:, 3].astype(np.int64)
    rule = {"method": method, "sigma": 0.4, "nms_tiou": 0.25, "min_score": 0.125, "max_keep": max_keep}
    indices, picked = soft_nms(segments, scores, labels, **rule)
    want = slow_nms_of_labels(segments.tolist(), scores.tolist(), labels.tolist(), **rule)
    assert list(zip(indices.tolist(), picked.tolist(), strict=True)) == want


def test_a_score_that_is_no_number_is_never_kept():
    indices, _ = soft_nms(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([np.nan, 0.5]), np.zeros(2, dtype=int))
    assert indices.tolist() == [1]


def test_soft_nms_of_nothing_or_of_low_scores_keeps_nothing():
    for count, score in ((0, 0.5), (3, 1e-6)):
        segments, labels = np.tile([0.0, 1.0], (count, 1)), np.arange(count)
        indices, picked = soft_nms(segments, np.full(count, score), labels, min_score=0.01)
        assert indices.shape == picked.shape == (0,) and indices.dtype == np.int64


def test_equal_scores_keep_their_order():
    segments = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    indices, _ = soft_nms(segments, np.full(4, 0.5), np.array([1, 0, 1, 0]), max_keep=3)
    assert indices.tolist() == [1, 3, 0]


def test_float32_stays_float32_and_the_input_is_left_alone():
    segments, scores = np.array([[0, 1], [0, 1]], dtype=np.float32), np.array([0.9, 0.8], dtype=np.float32)
    indices, picked = soft_nms(segments, scores, np.zeros(2, dtype=int))
    assert picked.dtype == np.float32 and indices.tolist() == [0, 1]
    assert picked[1] == pytest.approx(0.8 * math.exp(-1 / 0.35)) and scores.tolist() == pytest.approx(
        [0.9, 0.8]
    )


@pytest.mark.parametrize(
    ("scores", "labels"), [(np.ones(4), np.ones(3)), (np.ones(3), np.ones(4)), (np.ones((1, 3)), np.ones(3))]
)
def test_soft_nms_refuses_shapes_that_do_not_fit(scores, labels):
    with pytest.raises(ValueError, match=r"soft_nms: segments \(3, 2\), scores .* want \(P, 2\), "):
        soft_nms(np.ones((3, 2)), scores, labels)


@pytest.mark.parametrize(("name", "value"), [("nms", "greedy"), ("sigma", 0.0), ("max_detections", 0)])
def test_settings_that_soft_nms_cannot_follow_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        PostSettings.model_validate({name: value})
