"""AR@AN and recall at k: by hand, and against loops written from the protocol's definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from metric_cases import SEEDS, found, random_case, tiou, video

from pipeline.annotations import read_annotations
from train.evaluation.matching import evaluation_data, match_detections
from train.evaluation.recall import (
    RECALL_TIOU,
    TOP_K,
    area_under,
    average_recall,
    first_ranks,
    format_recall,
    recall_at,
    recall_metrics,
)


def slow_average_recall(truth, detections) -> np.ndarray:
    """The curve for AN 1 .. 100, one video, threshold and number of proposals after the other."""
    videos = [key for key, item in truth.items() if item.actions]
    ratio = 100 * float(len(videos)) / max(1, sum(map(len, detections.values())))
    kept = {}
    for key in videos:
        entries = sorted(detections.get(key, []), key=lambda entry: -entry["score"])
        kept[key] = entries[: min(int(len(entries) * ratio), len(entries))]
    total = sum(map(len, kept.values()))
    if not total:
        return np.zeros(100)
    num_true = sum(len(truth[key].actions) for key in videos)
    curve = []
    for number in range(1, 101):
        share = number / 100.0 * (100 * float(len(videos)) / total)
        recalls = []
        for threshold in RECALL_TIOU:
            hits = 0
            for key in videos:
                first = kept[key][: min(int(len(kept[key]) * share), len(kept[key]))]
                for action in truth[key].actions:
                    hits += any(tiou(p["segment"], (action.start, action.end)) >= threshold for p in first)
            recalls.append(hits / num_true)
        curve.append(np.mean(recalls))
    return np.array(curve)


def slow_recall_at(truth, detections, thresholds, *, same_label: bool) -> np.ndarray:
    rows = []
    for threshold in thresholds:
        row = []
        for k in TOP_K:
            hits, total = 0, 0
            for key, item in truth.items():
                best = sorted(detections.get(key, []), key=lambda entry: -entry["score"])[:k]
                for action in item.actions:
                    total += 1
                    hits += any(
                        tiou(d["segment"], (action.start, action.end)) >= threshold
                        and (not same_label or d["label"] == action.label)
                        for d in best
                    )
            row.append(hits / total)
        rows.append(row)
    return np.array(rows)


@pytest.mark.slow
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_curve_equals_a_loop_over_videos_thresholds_and_numbers(seed):
    truth, detections = random_case(seed, videos=4)
    got = average_recall(first_ranks(evaluation_data(truth, detections), RECALL_TIOU))
    np.testing.assert_allclose(got, slow_average_recall(truth, detections), atol=1e-12)  # sums in other order


@pytest.mark.parametrize("per_video", [100, 101, 130, 333])
def test_more_proposals_than_the_curve_shows_are_cut_like_the_protocol_cuts_them(per_video):
    rng = np.random.default_rng(per_video)
    truth = {f"v{i}": video(f"v{i}", (1.0, 3.0, "a"), (2.0, 9.0, "b")) for i in range(2)}
    starts = rng.uniform(0, 9, (3, per_video))
    ends = starts + rng.uniform(0.5, 9, (3, per_video))
    keys = [*truth, "stranger"]
    detections = {
        key: [found(s, e, "a", float(rng.random())) for s, e in zip(starts[i], ends[i], strict=True)][
            : 99 - i
        ]
        if i == 1
        else [found(s, e, "a", float(rng.random())) for s, e in zip(starts[i], ends[i], strict=True)]
        for i, key in enumerate(keys)
    }
    got = average_recall(first_ranks(evaluation_data(truth, detections), RECALL_TIOU))
    np.testing.assert_allclose(got, slow_average_recall(truth, detections), atol=1e-12)


def test_numbers_of_proposals_round_as_floats_do():
    # 100 proposals, the right one 29th: int(100 * 0.29) is 28, so AN 29 does not have it yet
    entries = [found(50, 60, "a", 1 - i / 1000) for i in range(100)]
    entries[28] = found(0, 10, "a", 1 - 28 / 1000)
    curve = average_recall(
        first_ranks(evaluation_data({"v": video("v", (0, 10, "a"))}, {"v": entries}), RECALL_TIOU)
    )
    assert (curve[:29] == 0).all() and (curve[29:] == 1).all()


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_copied_video_is_a_video_that_counts_twice(seed):
    truth, detections = random_case(seed, videos=4)
    found_once = first_ranks(evaluation_data(truth, detections), RECALL_TIOU)
    copies = np.random.default_rng(seed).integers(0, 3, len(truth))
    if not any(n and item.actions for n, item in zip(copies, truth.values(), strict=True)):
        assert np.isnan(average_recall(found_once, copies.astype(float))).all()
        return
    names = {f"{key}.{i}": key for key, n in zip(truth, copies, strict=True) for i in range(n)}
    more = {name: detections.get(key, []) for name, key in names.items()}
    more["stranger"] = detections.get("stranger", [])
    want = average_recall(
        first_ranks(evaluation_data({n: truth[k] for n, k in names.items()}, more), RECALL_TIOU)
    )
    np.testing.assert_allclose(average_recall(found_once, copies.astype(float)), want, atol=1e-12)


@pytest.mark.parametrize("same_label", [True, False])
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_recall_at_k_equals_a_loop(same_label, seed):
    truth, detections = random_case(seed)
    thresholds = np.array([0.1, 0.5, 0.9])
    got = recall_at(first_ranks(evaluation_data(truth, detections), thresholds, same_label=same_label))
    want = slow_recall_at(truth, detections, thresholds, same_label=same_label)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_the_area_of_a_perfect_curve_is_its_width():
    truth = {"v": video("v", (0, 10, "a"))}
    curve = average_recall(first_ranks(evaluation_data(truth, {"v": [found(0, 10, "b", 1.0)]}), RECALL_TIOU))
    assert (curve == 1).all()  # the label does not matter
    assert area_under(curve) == pytest.approx(0.99)


def test_no_proposals_at_all_find_nothing():
    curve = average_recall(first_ranks(evaluation_data({"v": video("v", (0, 10, "a"))}, {}), RECALL_TIOU))
    assert (curve == 0).all()


def test_where_proposals_elsewhere_leave_none_to_the_videos_with_actions_nothing_is_found():
    detections = {"v": [found(0, 10, "a", 1.0)], "other": [found(0, 10, "a", 0.5)] * 200}
    data = evaluation_data({"v": video("v", (0, 10, "a"))}, detections)
    assert (average_recall(first_ranks(data, RECALL_TIOU)) == 0).all()


def test_the_metrics_are_plain_numbers_and_have_a_table():
    truth, detections = random_case(5)
    recall = recall_metrics(match_detections(evaluation_data(truth, detections), np.array([0.5, 0.75])))
    assert json.loads(json.dumps(recall)) == recall
    assert recall["AR"]["100"] == recall["curve"][-1]
    lines = format_recall(recall).splitlines()
    assert "AR@100" in lines[0] and "AUC" in lines[0] and len(lines) == 3


@pytest.mark.slow
def test_the_real_set_gives_what_the_loop_gives(shared_real):
    folder = shared_real / "results" / "autoloc"
    truth = dict(list(read_annotations(folder / "TH14_gt.json").items())[:4])
    detections = json.loads((folder / "TH14_result.json").read_text())["results"]
    detections = {key: entries[:60] for key, entries in detections.items() if key in truth}
    got = average_recall(first_ranks(evaluation_data(truth, detections), RECALL_TIOU))
    np.testing.assert_allclose(got, slow_average_recall(truth, detections), atol=1e-12)


@pytest.mark.slow
def test_the_whole_real_set_gives_what_the_public_evaluation_gives(shared_real):
    folder = shared_real / "results" / "autoloc"
    detections = json.loads((folder / "TH14_result.json").read_text())["results"]
    data = evaluation_data(read_annotations(folder / "TH14_gt.json"), detections)
    curve = average_recall(first_ranks(data, RECALL_TIOU))
    # measured once with a transcription of the public evaluation's function; 1e-12: sums in another order
    assert area_under(curve) == pytest.approx(0.22909415584415582, abs=1e-12)
