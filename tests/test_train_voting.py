"""Segment voting against a plain loop, and through post-processing."""

from __future__ import annotations

import numpy as np
import pytest
from test_train_postprocess import window

from train import voting
from train.postprocess import PostSettings, postprocess_video
from train.voting import vote


def slow_vote(detection, candidates, scores, voting_tiou):
    total, sums = 0.0, [0.0, 0.0]
    for (start, end), score in zip(candidates, scores, strict=True):
        inter = max(0.0, min(end, detection[1]) - max(start, detection[0]))
        union = (end - start) + (detection[1] - detection[0]) - inter
        tiou = inter / union if union > 0 else 0.0
        if tiou >= voting_tiou:
            total += tiou * score
            sums = [sums[0] + tiou * score * start, sums[1] + tiou * score * end]
    return [x / total for x in sums] if total else list(detection)


@pytest.mark.parametrize("voting_tiou", [0.3, 0.7])
def test_ends_are_the_means_of_what_overlaps_enough(voting_tiou):
    rng = np.random.default_rng(0)
    candidates, scores = np.sort(rng.uniform(0, 10, (50, 2)), axis=1), rng.random(50)
    moved = vote(candidates[:20], candidates, scores, voting_tiou=voting_tiou)
    wanted = [slow_vote(row, candidates, scores, voting_tiou) for row in candidates[:20]]
    assert np.allclose(moved, wanted, atol=1e-12) and not np.allclose(moved, candidates[:20])


def test_how_many_vote_at_once_changes_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    candidates, scores = np.sort(rng.uniform(0, 10, (20, 2)), axis=1), rng.random(20)
    at_once = vote(candidates, candidates, scores, voting_tiou=0.3)
    for most in (1, 70, 400):
        monkeypatch.setattr(voting, "_WEIGHTS_AT_ONCE", most)
        some = vote(candidates, candidates, scores, voting_tiou=0.3)
        np.testing.assert_allclose(some, at_once, rtol=1e-12)  # BLAS sums in another order


def test_what_nothing_overlaps_or_has_no_length_stays():
    detections = np.array([[1.0, 2.0], [5.0, 5.0]])
    assert vote(detections, np.zeros((0, 2)), np.zeros(0), voting_tiou=0.5).tolist() == detections.tolist()
    assert vote(detections, detections, np.ones(2), voting_tiou=0.5).tolist() == detections.tolist()


def test_candidates_of_a_class_vote_before_their_suppression_for_that_class_alone():
    segments = [[2, 6], [2, 7], [3, 6]]
    scores = [[0.8, 0.0], [0.4, 0.0], [0.0, 0.9]]
    settings = PostSettings(quality_power=0, nms="hard", nms_tiou=0.5, min_score=0.01)
    raw = window(segments, [1, 1, 1], scores)
    plain = postprocess_video([raw], ["a", "b"], settings)
    voted = postprocess_video([raw], ["a", "b"], settings.model_copy(update={"voting_tiou": 0.7}))
    assert [(d["label"], d["segment"]) for d in plain] == [("b", [3, 6]), ("a", [2, 6])]
    # weights 0.8 x 1 and 0.4 x 4/5
    end = (0.8 * 6 + 0.32 * 7) / 1.12
    assert [(d["label"], d["segment"]) for d in voted] == [("b", [3, 6]), ("a", [2, round(end, 4)])]
    assert [d["score"] for d in voted] == [d["score"] for d in plain]
