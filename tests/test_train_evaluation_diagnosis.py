"""The diagnosis: by hand, and against loops over single detections, from the paper's definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from metric_cases import SEEDS, TIOU, area_under_interpolated_curve, found, random_case, tiou, video

from pipeline.annotations import read_annotations
from train.evaluation.characteristics import BINS, NAMES, bin_values, characteristics_of
from train.evaluation.diagnosis import (
    DETECTION_KINDS,
    ERROR_KINDS,
    detection_kinds,
    diagnose,
    missed_actions,
    profile,
    sensitivity,
    summary_statistic,
)
from train.evaluation.matching import evaluation_data, match_detections

# --- the slow reference: lists of dictionaries ------------------------------------------------------------


def slow_detections(truth, detections, threshold) -> dict[str, list[dict]]:
    """Per class, by falling score: detections with "kind" and "takes", the number of their true action."""
    actions = [(key, a) for key, item in truth.items() for a in item.actions]
    by_class = {label: [] for label in sorted({a.label for _, a in actions})}
    for key, entries in detections.items():
        for entry in entries:
            if entry["label"] in by_class:
                by_class[entry["label"]].append({**entry, "video": key})
    for label, rows in by_class.items():
        rows.sort(key=lambda row: -row["score"])
        taken = set()
        for row in rows:
            own = [
                (tiou(row["segment"], (a.start, a.end)), number)
                for number, (key, a) in enumerate(actions)
                if key == row["video"] and a.label == label
            ]
            free = [pair for pair in own if pair[0] >= threshold and pair[1] not in taken]
            row["takes"] = max(free)[1] if free else None
            taken.add(row["takes"])
            row["kind"] = slow_kind(row, actions, threshold)
    return by_class


def slow_kind(row, actions, threshold) -> str:
    if row["takes"] is not None:
        return "true_positive"
    near = [
        (tiou(row["segment"], (a.start, a.end)), a.label == row["label"])
        for key, a in actions
        if key == row["video"]
    ]
    best, same = max(near, default=(0.0, True))
    if best >= threshold:
        return "double" if same else "wrong_label"
    if best >= 0.1:
        return "localisation" if same else "confusion"
    return "background"


def slow_normalised_ap(right: list[bool], num_true: int, average: float) -> float:
    recall, precision, hits = [], [], 0
    for position, is_right in enumerate(right):
        hits += is_right
        share = hits / num_true * average
        recall.append(hits / num_true)
        precision.append(share / (share + position + 1 - hits))
    return area_under_interpolated_curve(precision, recall)


def class_sizes(truth) -> dict[str, int]:
    labels = [a.label for item in truth.values() for a in item.actions]
    return {label: labels.count(label) for label in sorted(set(labels))}


def slow_top(truth, detections, thresholds) -> list[float]:
    """Average mAP_N of the best 10 G, shares of the kinds among them, gains without each kind of error."""
    sizes = class_sizes(truth)
    average = sum(sizes.values()) / len(sizes)
    shares = np.zeros(6)
    areas = {kind: [] for kind in (None, *ERROR_KINDS)}
    for threshold in thresholds:
        by_class = slow_detections(truth, detections, threshold)
        rows = {label: by_class[label][: 10 * size] for label, size in sizes.items()}
        flat = [row["kind"] for part in rows.values() for row in part]
        shares += [flat.count(kind) / max(1, len(flat)) for kind in DETECTION_KINDS]
        for removed in areas:
            areas[removed] += [
                slow_normalised_ap(
                    [row["takes"] is not None for row in rows[label] if row["kind"] != removed], size, average
                )
                for label, size in sizes.items()
            ]
    base = np.mean(areas[None])
    return [base, *(shares / len(thresholds)), *(np.mean(areas[kind]) - base for kind in ERROR_KINDS)]


def matched_of(truth, detections, thresholds=TIOU):
    return match_detections(evaluation_data(truth, detections), np.array(thresholds))


@pytest.mark.slow
@given(seed=SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_kinds_shares_and_gains_equal_the_loop(seed):
    truth, detections = random_case(seed, most=40)
    matched = matched_of(truth, detections)
    kinds = detection_kinds(matched)
    for level, threshold in enumerate(TIOU):
        rows = [r for part in slow_detections(truth, detections, threshold).values() for r in part]
        assert [DETECTION_KINDS[code] for code in kinds[level]] == [row["kind"] for row in rows]
    got = summary_statistic(matched, kinds)(np.ones(len(truth)))
    # 1e-12: the same fractions, added in another order
    np.testing.assert_allclose(got, slow_top(truth, detections, TIOU), atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_groups_of_the_profile_equal_slices_of_each_class(seed):
    truth, detections = random_case(seed, most=60)
    matched = matched_of(truth, detections)
    table = profile(matched, detection_kinds(matched))
    want = np.zeros((10, 6))
    for threshold in TIOU:
        by_class = slow_detections(truth, detections, threshold)
        for label, size in class_sizes(truth).items():
            for group in range(10):
                kinds = [row["kind"] for row in by_class[label][group * size : (group + 1) * size]]
                want[group] += [kinds.count(kind) / len(TIOU) for kind in DETECTION_KINDS]
    np.testing.assert_allclose(table["groups"], want, atol=1e-12)
    np.testing.assert_allclose(np.sum(list(table["per_class"].values()), axis=0), want.sum(axis=0), atol=1e-9)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_sensitivity_and_false_negatives_equal_the_loop(seed):
    truth, detections = random_case(seed)
    matched = matched_of(truth, detections)
    length = characteristics_of(matched.data, truth, scheme="thumos")[1]
    sizes = class_sizes(truth)
    average = sum(sizes.values()) / len(sizes)
    actions = [a for item in truth.values() for a in item.actions]
    levels = [slow_detections(truth, detections, threshold) for threshold in TIOU]
    lost = missed_actions(matched)
    for level, by_class in enumerate(levels):
        for label, size in sizes.items():
            hits, kept = 0, set()
            for position, row in enumerate(by_class[label]):
                hits += row["takes"] is not None
                share = hits / size * average
                if row["takes"] is not None and share / (share + position + 1 - hits) > 0.05:
                    kept.add(row["takes"])
            mine = [number for number, action in enumerate(actions) if action.label == label]
            assert {number for number in mine if not lost[level, number]} == kept
    for number, got in enumerate(sensitivity(matched, length)):
        inside = {i for i in range(len(actions)) if length.bin[i] == number}
        if not inside:
            assert got is None
            continue
        areas = []
        for label in sizes:
            mine = [i for i in inside if actions[i].label == label]
            if not mine:
                continue
            rows = list(zip(*(by_class[label] for by_class in levels), strict=True))
            rows = [row for row in rows if all(r["takes"] is None or r["takes"] in inside for r in row)]
            for level in range(len(TIOU)):
                right = [row[level]["takes"] is not None for row in rows]
                areas.append(slow_normalised_ap(right, len(mine), average))
        assert got == pytest.approx(np.mean(areas), abs=1e-12)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_headline_of_copied_videos_is_that_of_a_set_that_holds_them_twice(seed):
    truth, detections = random_case(seed, videos=4, most=40)
    truth = {key: truth[key] for key in truth}
    detections = {key: entries for key, entries in detections.items() if key in truth}
    # equal scores would be ordered by video in one and by copy in the other
    rng = np.random.default_rng(seed)
    for entries in detections.values():
        for entry in entries:
            entry["score"] = float(rng.random())
        entries[:] = {id(entry): entry for entry in entries}.values()
    copies = rng.integers(0, 3, len(truth))
    names = {f"{key}.{i}": key for key, n in zip(truth, copies, strict=True) for i in range(n)}
    matched = matched_of(truth, detections)
    got = summary_statistic(matched, detection_kinds(matched))(copies.astype(float))
    if not any(truth[key].actions for key in names.values()):
        assert np.isnan(got[0])
        return
    more = {name: detections.get(key, []) for name, key in names.items()}
    twice = matched_of({name: truth[key] for name, key in names.items()}, more)
    want = summary_statistic(twice, detection_kinds(twice))(np.ones(len(names)))
    np.testing.assert_allclose(got, want, atol=1e-12)


# --- by hand ------------------------------------------------------------------------------------------------


def test_one_detection_of_each_kind():
    truth = {"v": video("v", (0, 10, "run"), (20, 30, "jump")), "empty": video("empty")}
    detections = {
        "v": [
            found(0, 10, "run", 0.9),
            found(0, 9, "run", 0.8),  # the action is taken
            found(20, 30, "run", 0.7),  # right segment, wrong class
            found(0, 4, "run", 0.6),  # tIoU 0.4
            found(20, 23, "run", 0.5),  # tIoU 0.3 with another class
            found(12, 18, "run", 0.4),
        ],
        "empty": [found(0, 10, "run", 0.3), found(0, 10, "run", 0.2)],
    }
    kinds = detection_kinds(matched_of(truth, detections, [0.5]))[0]
    assert [DETECTION_KINDS[code] for code in kinds] == [*DETECTION_KINDS, "background", "background"]


def test_a_tiou_of_a_tenth_is_a_localisation_error_and_less_is_background():
    truth = {"v": video("v", (0, 10, "run"))}
    detections = {"v": [found(0, 1, "run", 0.9), found(0, 0.99, "run", 0.8)]}
    kinds = detection_kinds(matched_of(truth, detections, [0.5]))[0]
    assert [DETECTION_KINDS[code] for code in kinds] == ["localisation", "background"]


def test_with_equal_tiou_the_class_of_the_detection_is_preferred():
    truth = {"v": video("v", (0, 10, "jump"), (0, 10, "run"))}
    detections = {"v": [found(0, 10, "run", 0.9), found(0, 10, "run", 0.8)]}
    assert detection_kinds(matched_of(truth, detections, [0.5]))[0].tolist() == [
        0,
        DETECTION_KINDS.index("double"),
    ]


def test_taking_away_the_errors_before_a_hit_gains_what_they_cost():
    truth = {"v": video("v", (0, 10, "run"))}
    detections = {"v": [found(40, 50, "run", 0.9), found(0, 10, "run", 0.8)]}
    matched = matched_of(truth, detections, [0.5])
    top = diagnose(matched, characteristics_of(matched.data, truth))["top"]
    assert top["average_mAP_N"] == pytest.approx(0.5)
    assert top["gain"]["background"] == pytest.approx(0.5)
    assert top["gain"]["double"] == 0
    assert top["share"] == {**dict.fromkeys(DETECTION_KINDS, 0), "true_positive": 0.5, "background": 0.5}


def test_the_diagnosis_is_plain_json_whatever_is_missing():
    truth = {"v": video("v", (0, 10, "run"), duration=None), "w": video("w")}
    matched = matched_of(truth, {})
    result = diagnose(matched, characteristics_of(matched.data, truth))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["false_negatives"] == 1.0
    assert all(item["num_true"] == 0 for item in result["characteristics"]["coverage"]["bins"])


def test_a_bin_holds_its_upper_edge():
    values = np.array([0.0, 30.0, 30.1, 60.0, 120.0, 180.0, 1000.0, np.nan])
    item = bin_values("length", values, "activitynet")
    assert item.bin.tolist() == [0, 0, 1, 1, 2, 3, 4, -1]
    assert item.names == NAMES


def test_an_action_past_the_end_of_its_video_has_the_largest_coverage():
    assert bin_values("coverage", np.array([0.1, 0.5, 1.2]), "activitynet").bin.tolist() == [0, 2, 4]


def test_lengths_that_all_fall_into_one_published_bin_are_cut_into_quintiles():
    item = bin_values("length", np.linspace(1, 10, 50), "activitynet")
    assert item.scheme == "quintiles"
    assert np.bincount(item.bin).tolist() == [10] * 5


# --- real data ----------------------------------------------------------------------------------------------


def test_characteristics_equal_those_published_with_detad(shared_real):
    path = shared_real / "annotations" / "thumos14" / "detad_thumos14_test_extra_characteristics.json"
    database = json.loads(path.read_text())["database"]
    truth, want = {}, {"coverage": [], "length": [], "instances": []}
    for key, item in database.items():
        entries = item["annotations"]
        first = entries[0]
        duration = first["length"] / first["coverage"]
        truth[key] = video(key, *((*e["segment"], e["label"]) for e in entries), duration=duration)
        for name, field in (("coverage", "coverage"), ("length", "length"), ("instances", "num-instances")):
            want[name] += [entry[field] for entry in entries]
    got = characteristics_of(evaluation_data(truth, {}), truth, scheme="thumos")
    for item in got:
        assert item.scheme == "thumos"
        values, edges = np.array(want[item.name]), BINS["thumos"][item.name]
        away = np.abs(values[:, None] - np.array(edges[1:-1])).min(axis=1) > 1e-9  # rounding at the very edge
        np.testing.assert_array_equal(item.bin[away], np.searchsorted(edges[1:-1], values)[away])


@pytest.mark.slow
def test_the_published_bins_fit_activitynet(shared_real):
    path = shared_real / "annotations" / "anet13" / "anet13_rebuilt_trainval_gt.json"
    truth = read_annotations(path, subset="validation")
    items = characteristics_of(evaluation_data(truth, {}), truth)
    assert [item.scheme for item in items] == ["activitynet"] * 3


@pytest.mark.slow
def test_the_shares_of_a_real_set_add_up(shared_real):
    folder = shared_real / "results" / "autoloc"
    truth = read_annotations(folder / "TH14_gt.json")
    detections = json.loads((folder / "TH14_result.json").read_text())["results"]
    matched = matched_of(truth, detections, [0.5])
    result = diagnose(matched, characteristics_of(matched.data, truth, scheme="thumos"))
    assert sum(result["top"]["share"].values()) == pytest.approx(1)
    assert all(gain >= 0 for gain in result["top"]["gain"].values())
    bins = result["characteristics"]["length"]["bins"]
    missed_actions = sum(item["false_negatives"] * item["num_true"] for item in bins)
    assert missed_actions == pytest.approx(result["false_negatives"] * len(matched.data.true.label))
