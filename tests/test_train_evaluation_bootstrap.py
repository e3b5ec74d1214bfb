"""The bootstrap: a resample is the evaluation of a set that holds its videos as often as they were drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from metric_cases import SEEDS, TIOU, found, random_case, video

from train.evaluation.average_precision import mean_average_precision
from train.evaluation.bootstrap import (
    bootstrap,
    class_means,
    class_precision,
    compare,
    draw_videos,
    excludes_zero,
    percentile_interval,
    resample,
)
from train.evaluation.matching import evaluation_data, match_detections
from train.evaluation.recall import recall_metrics


def matched_of(truth, detections, thresholds=TIOU):
    return match_detections(evaluation_data(truth, detections), np.array(thresholds))


def with_different_scores_in_a_video(detections: dict, seed: int) -> dict:
    """Equal scores remain between videos; inside one, copies of a video would be shuffled together."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(64) / 64
    return {
        key: [{**entry, "score": float(score)} for entry, score in zip(entries, scores, strict=False)]
        for key, entries in detections.items()
    }


def copied(truth, detections, copies):
    """The set in which each video stands as often as `copies` says."""
    names = {f"{key}.{i}": key for key, n in zip(truth, copies, strict=True) for i in range(int(n))}
    more = {name: detections[key] for name, key in names.items() if key in detections}
    strangers = {key: entries for key, entries in detections.items() if key not in truth}
    return {name: truth[key] for name, key in names.items()}, {**more, **strangers}


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_resample_is_the_evaluation_of_the_copied_videos(seed):
    truth, detections = random_case(seed)
    detections = with_different_scores_in_a_video(detections, seed)
    matched = matched_of(truth, detections)
    copies = next(draw_videos(len(truth), 1, seed))
    got = class_precision(matched)(copies).reshape(-1, len(TIOU))
    more_truth, more_detections = copied(truth, detections, copies)
    if not any(item.actions for item in more_truth.values()):
        assert np.isnan(got).all()
        return
    want = mean_average_precision(more_truth, more_detections, tiou=TIOU)
    for name, areas in zip(matched.data.labels, got, strict=True):
        # 1e-12: the same fractions, added in another order; NaN for a class that was not drawn
        np.testing.assert_allclose(areas, want["per_class"].get(name, [np.nan] * len(TIOU)), atol=1e-12)
    np.testing.assert_allclose(class_means(got.reshape(1, -1), len(TIOU))[0, :-1], want["mAP"], atol=1e-12)


def test_each_video_drawn_once_is_the_evaluation_itself():
    truth, detections = random_case(11)
    matched = matched_of(truth, detections)
    means = class_means(class_precision(matched)(np.ones(len(truth)))[None], len(TIOU))[0]
    metrics = mean_average_precision(truth, detections, tiou=TIOU)
    np.testing.assert_allclose(means, [*metrics["mAP"], metrics["average_mAP"]], atol=1e-12)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=400)
    samples = resample(lambda n: np.array([n @ values / n.sum()]), 400, resamples=2000, seed=1)
    low, high = percentile_interval(samples)[:, 0]
    half = 1.96 * values.std() / 20
    # 2,000 resamples know the 2.5 % point to a twentieth of the half width or so
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_the_same_seed_draws_the_same_videos_and_another_one_does_not():
    assert all((a == b).all() for a, b in zip(draw_videos(50, 3, 7), draw_videos(50, 3, 7), strict=True))
    assert not (next(draw_videos(50, 1, 7)) == next(draw_videos(50, 1, 8))).all()
    assert all(copies.sum() == 50 for copies in draw_videos(50, 5, 7))


def many_videos(seed: int, quality: float, count: int = 60):
    """Half of the videos are easy, half hard; a share of the detections, `quality`, is exact."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(0)
    truth, detections = {}, {}
    for number in range(count):
        start = float(other.uniform(0, 50))
        truth[f"v{number}"] = video(f"v{number}", (start, start + 10, f"c{number % 2}"), duration=60.0)
        right = rng.random() < (quality if number % 4 < 2 else quality / 4)
        shift = 0.0 if right else 9.0
        detections[f"v{number}"] = [found(start + shift, start + shift + 10, f"c{number % 2}", rng.random())]
    return truth, detections


def test_the_intervals_hold_the_figures_and_are_plain_json():
    truth, detections = many_videos(1, 0.7)
    matched = matched_of(truth, detections, (0.5, 0.75))
    result = bootstrap(matched, resamples=60, seed=3, diagnosis=True)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    metrics, recall = mean_average_precision(truth, detections, tiou=(0.5, 0.75)), recall_metrics(matched)
    low, high = result["average_mAP"]
    assert low < metrics["average_mAP"] < high
    low, high = result["AUC"]
    assert low < recall["AUC"] < high
    low, high = result["diagnosis"]["share"]["true_positive"]
    assert 0 < low < high < 1
    assert len(result["mAP"]) == 2


def test_one_resample_is_no_interval():
    truth, detections = random_case(1)
    with pytest.raises(ValueError, match="got 1 resamples, want at least 2"):
        bootstrap(matched_of(truth, detections), resamples=1)


def test_a_set_against_itself_differs_by_nothing():
    truth, detections = many_videos(1, 0.6)
    matched = matched_of(truth, detections, (0.5,))
    row = compare(matched, matched, resamples=20)["rows"][0]
    assert row["difference"] == 0 and row["interval"] == [0, 0] and row["a_better"] == 0.5
    assert not excludes_zero(row["interval"])


def test_the_better_set_is_found_and_the_pairing_narrows_the_interval():
    truth, good = many_videos(1, 0.9)
    worse = {key: [] if key in ("v4", "v9") else entries for key, entries in good.items()}
    a, b = (matched_of(truth, found, (0.5,)) for found in (good, worse))
    result = compare(a, b, resamples=200, seed=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    average, at_half = result["rows"]
    assert average["tiou"] == "average" and at_half["tiou"] == "0.5"
    assert average["difference"] == pytest.approx(
        mean_average_precision(truth, good, tiou=(0.5,))["average_mAP"]
        - mean_average_precision(truth, worse, tiou=(0.5,))["average_mAP"]
    )
    alone = bootstrap(a, resamples=200, seed=2)["average_mAP"]
    width = average["interval"][1] - average["interval"][0]
    assert width < 0.7 * (alone[1] - alone[0])
    assert set(result["classes"]) == {"c0", "c1"}
    assert result["classes"]["c0"]["a_better"] > 0.5


def test_too_few_videos_have_no_interval_and_no_winner():
    """Resamples of one video are all alike: an interval of no width, without zero, would pass for a proof."""
    for count, known in ((1, False), (5, False), (6, True)):
        truth, good = many_videos(1, 0.9, count)
        a, b = (matched_of(truth, detections) for detections in (good, many_videos(1, 0.3, count)[1]))
        bounds = bootstrap(a, resamples=20, diagnosis=True)
        pairs = [*bounds["mAP"], bounds["average_mAP"], *bounds["AR"].values(), bounds["AUC"]]
        pairs += bounds["diagnosis"]["share"].values()
        assert all((None not in pair) == known for pair in pairs)
        for row in compare(a, b, resamples=20)["rows"]:
            assert (row["a_better"] is not None) == known
            assert known or row["interval"] == [None, None]


def test_a_class_of_few_videos_has_no_interval_beside_one_of_many():
    truth, detections = many_videos(1, 0.9, 20)
    truth["v0"] = video("v0", (0.0, 5.0, "rare"))
    found_too = {**detections, "v0": [found(0.0, 5.0, "rare", 0.9)]}
    result = compare(matched_of(truth, found_too), matched_of(truth, detections), resamples=20)
    assert result["classes"]["rare"]["difference"] == 1
    assert result["classes"]["rare"]["interval"] == [None, None]
    assert None not in result["classes"]["c0"]["interval"] + result["rows"][0]["interval"]


def test_sets_with_another_ground_truth_are_not_compared():
    truth, detections = many_videos(1, 0.9)
    a = matched_of(truth, detections)
    b = matched_of({key: truth[key] for key in list(truth)[1:]}, detections)
    with pytest.raises(ValueError, match="different ground truths"):
        compare(a, b, resamples=5)
