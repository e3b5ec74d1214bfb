"""mAP: hand-drawn cases, a slow obvious reference, the published figures, speed."""

from __future__ import annotations

import json
import time
from collections import defaultdict

import metric_cases
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from pipeline import duplicates
from pipeline.annotations import Action, Video, read_annotations
from pipeline.duplicates import is_duplicate
from train.evaluation.average_precision import Curves, format_map_table, mean_average_precision, parse_tiou
from train.evaluation.matching import ground_truth_table, pair_tiou


def video(*actions: tuple[float, float, str], key: str = "v") -> Video:
    return Video(key, "validation", None, tuple(Action(*action) for action in actions))


def found(start: float, end: float, label: str, score: float) -> dict:
    return {"segment": [start, end], "label": label, "score": score}


# --- a straightforward loop over pandas rows, written from the protocol's definition ------------------------


def slow_class_ap(true: pd.DataFrame, detected: pd.DataFrame, tiou: tuple[float, ...]) -> list[float]:
    detected = detected.sort_values("score", ascending=False, kind="stable")  # equal scores: file order
    taken = {threshold: set() for threshold in tiou}
    hits = {threshold: [] for threshold in tiou}
    for _, row in detected.iterrows():
        options = []
        for index, action in true[true["video"] == row["video"]].iterrows():
            value = metric_cases.tiou((row["start"], row["end"]), (action["start"], action["end"]))
            options.append((value, index))
        options.sort(reverse=True)
        for threshold in tiou:
            free = [i for value, i in options if value >= threshold and i not in taken[threshold]]
            taken[threshold].update(free[:1])
            hits[threshold].append(bool(free))
    result = []
    for threshold in tiou:
        right = np.cumsum(hits[threshold])
        precision = right / np.arange(1, len(right) + 1)
        result.append(metric_cases.area_under_interpolated_curve(list(precision), list(right / len(true))))
    return result


def slow_mean_ap(truth: dict[str, Video], detections: dict[str, list[dict]], tiou) -> np.ndarray:
    true = pd.DataFrame(
        [(key, a.start, a.end, a.label) for key, item in truth.items() for a in item.actions],
        columns=["video", "start", "end", "label"],
    )
    detected = pd.DataFrame(
        [
            (key, *d["segment"], d["label"], d["score"])
            for key, entries in detections.items()
            for d in entries
        ],
        columns=["video", "start", "end", "label", "score"],
    )
    rows = [
        slow_class_ap(true[true["label"] == label], detected[detected["label"] == label], tiou)
        for label in sorted(true["label"].unique())
    ]
    return np.array(rows)


def random_case(seed: int) -> tuple[dict[str, Video], dict[str, list[dict]]]:
    """Crowded videos on a coarse grid: equal scores, equal tIoUs and nested segments are frequent."""
    rng = np.random.default_rng(seed)
    truth, detections = {}, defaultdict(list)
    for number in range(6):
        key = f"v{number}"
        starts = rng.integers(0, 12, rng.integers(0, 7))
        actions = [(float(s), float(s + rng.integers(1, 6)), f"c{rng.integers(3)}") for s in starts]
        truth[key] = video(*actions, key=key)
        for _ in range(rng.integers(0, 25)):
            start = rng.integers(0, 14)
            label, score = f"c{rng.integers(3)}", float(rng.integers(1, 9)) / 8
            detections[key].append(found(float(start), float(start + rng.integers(1, 6)), label, score))
    return truth, dict(detections)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_loop_over_rows_on_crowded_random_videos(seed):
    truth, detections = random_case(seed)
    tiou = (0.1, 0.25, 0.4, 0.5, 0.75, 1.0)
    metrics = mean_average_precision(truth, detections, tiou=tiou)
    # 1e-12: the same fractions, added in another order
    np.testing.assert_allclose(
        list(metrics["per_class"].values()), slow_mean_ap(truth, detections, tiou), atol=1e-12
    )


@pytest.mark.slow
@given(seed=metric_cases.SEEDS)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_equals_the_loop_with_repeats_strangers_and_classes_without_truth(seed):
    truth, detections = metric_cases.random_case(seed)
    metrics = mean_average_precision(truth, detections, tiou=metric_cases.TIOU)
    want = slow_mean_ap(truth, detections, metric_cases.TIOU)
    np.testing.assert_allclose(list(metrics["per_class"].values()), want, atol=1e-12)


# --- the published figures ----------------------------------------------------------------------------------

PUBLISHED = {
    "mmaction2_toy": (
        "gt_anetformat.json",
        "result_anetformat.json",
        "activitynet",
        [0.714286, 0.714286, 0.714286, 0.6875, 0.6875, 0.597222, 0.520833, 0.520833, 0.520833, 0.5],
        0.6177579365079365,
    ),
    "autoloc": (
        "TH14_gt.json",
        "TH14_result.json",
        "0.1:0.1:0.9",
        [0.466737, 0.417076, 0.357702, 0.290167, 0.212054, 0.133954, 0.057969, 0.015566, 0.002086],
        0.21703455258465643,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("drop_duplicates", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_map_equals_the_published_figures(shared_real, name, drop_duplicates):
    truth_name, result_name, tiou, each, average = PUBLISHED[name]
    folder = shared_real / "results" / name
    truth = read_annotations(folder / truth_name)
    detections = json.loads((folder / result_name).read_text())["results"]
    metrics = mean_average_precision(
        truth, detections, tiou=parse_tiou(tiou)[0], drop_duplicates=drop_duplicates
    )
    # 1e-6: the reference is given to six digits; equal scores may be sorted either way
    np.testing.assert_allclose(metrics["mAP"], each, atol=1e-6)
    assert metrics["average_mAP"] == pytest.approx(average, abs=1e-6)


@pytest.mark.ci
@pytest.mark.slow
def test_at_least_20_times_faster_than_the_loop_over_rows(shared_real):
    folder = shared_real / "results" / "autoloc"
    truth = read_annotations(folder / "TH14_gt.json")
    detections = json.loads((folder / "TH14_result.json").read_text())["results"]
    few = {"CricketShot", "Billiards"}  # two of twenty classes keep the slow side under 5 s
    truth = {
        key: video(*((a.start, a.end, a.label) for a in item.actions if a.label in few), key=key)
        for key, item in truth.items()
    }
    detections = {key: [d for d in entries if d["label"] in few] for key, entries in detections.items()}
    tiou = parse_tiou("0.1:0.1:0.9")[0]
    start = time.process_time()
    slow = slow_mean_ap(truth, detections, tiou)
    slow_seconds = time.process_time() - start
    start = time.process_time()
    metrics = mean_average_precision(truth, detections, tiou=tiou)
    fast_seconds = time.process_time() - start
    np.testing.assert_allclose(list(metrics["per_class"].values()), slow, atol=1e-12)
    assert slow_seconds / fast_seconds > 20, f"{slow_seconds:.2f} s against {fast_seconds:.4f} s"


@pytest.mark.ci
@pytest.mark.slow
def test_the_size_of_activitynet_takes_seconds():
    rng = np.random.default_rng(0)
    truth, detections = {}, {}
    for number in range(5000):
        key, label = f"v{number}", f"c{number % 200}"
        starts = rng.uniform(0, 100, (2, 2)).round(2)
        truth[key] = video(*((float(min(s)), float(max(s)), label) for s in starts), key=key)
        segments = np.sort(rng.uniform(0, 100, (100, 2)), axis=1).tolist()
        scores = rng.random(100).tolist()
        detections[key] = [
            found(*segment, label if i % 2 else f"c{i}", score)
            for i, (segment, score) in enumerate(zip(segments, scores, strict=True))
        ]
    start = time.process_time()  # CPU time: other work on the machine does not count
    metrics = mean_average_precision(truth, detections)
    assert metrics["num_detections"] == 500_000
    assert time.process_time() - start < 5


# --- by hand ------------------------------------------------------------------------------------------------


def test_a_perfect_answer_scores_one_and_an_empty_one_zero():
    truth = {"v": video((0, 10, "jump"), (20, 30, "run"))}
    perfect = {"v": [found(0, 10, "jump", 0.9), found(20, 30, "run", 0.8)]}
    assert mean_average_precision(truth, perfect)["average_mAP"] == 1.0
    assert mean_average_precision(truth, {})["mAP"] == [0.0] * 10


def test_a_true_action_is_found_once_and_the_second_finder_is_false():
    truth = {"v": video((0, 10, "jump"), (50, 60, "jump"))}
    found_twice = {"v": [found(0, 10, "jump", 0.9), found(0, 9, "jump", 0.8), found(50, 60, "jump", 0.7)]}
    metrics = mean_average_precision(truth, found_twice, tiou=[0.5])
    # hit, miss, hit: precision 1 up to recall 1/2, 2/3 up to 1
    assert metrics["mAP"] == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])


def test_the_better_scored_detection_takes_the_action_and_the_other_the_next_best():
    truth = {"v": video((0, 10, "jump"), (2, 12, "jump"))}
    both_prefer_the_first = {"v": [found(0, 10, "jump", 0.5), found(0.5, 10, "jump", 0.9)]}
    # the second takes (0, 10); the first falls back on (2, 12), tIoU 8/12
    assert mean_average_precision(truth, both_prefer_the_first, tiou=[0.5])["mAP"] == [1.0]
    assert mean_average_precision(truth, both_prefer_the_first, tiou=[0.7])["mAP"] == [0.5]


def test_a_tiou_that_equals_the_threshold_counts():
    truth = {"v": video((0, 10, "jump"))}
    assert mean_average_precision(truth, {"v": [found(0, 5, "jump", 1)]}, tiou=[0.5])["mAP"] == [1.0]
    assert mean_average_precision(truth, {"v": [found(0, 3, "jump", 1)]}, protocol="thumos")["mAP"][0] == 1.0


def test_a_video_without_result_stays_in_the_denominator():
    truth = {key: video((0, 10, "jump"), key=key) for key in ("a", "b")}
    metrics = mean_average_precision(truth, {"a": [found(0, 10, "jump", 1)]}, tiou=[0.5])
    assert metrics["mAP"] == [0.5]
    assert (metrics["num_videos"], metrics["num_truth"], metrics["num_detections"]) == (2, 2, 1)


def test_a_detection_in_a_video_without_truth_is_false():
    truth = {"a": video((0, 10, "jump"), key="a"), "empty": video(key="empty")}
    right = found(0, 10, "jump", 0.5)
    for stranger in ("empty", "never heard of"):
        metrics = mean_average_precision(
            truth, {"a": [right], stranger: [found(0, 10, "jump", 0.9)]}, tiou=[0.5]
        )
        assert metrics["mAP"] == [0.5]  # precision 1/2 when the true one comes second


def test_a_class_without_true_actions_has_no_ap_and_moves_nothing():
    truth = {"v": video((0, 10, "jump"))}
    detections = {"v": [found(0, 10, "jump", 0.5), found(0, 10, "fly", 0.9)]}
    metrics = mean_average_precision(truth, detections, tiou=[0.5])
    assert metrics["per_class"] == {"jump": [1.0]}
    assert metrics["num_detections"] == 2


def test_segments_that_end_before_they_start_overlap_nothing():
    truth = {"v": video((0, 10, "jump"), (5, 5, "jump"))}
    backward = {"v": [found(10, 0, "jump", 0.9), found(5, 5, "jump", 0.8)]}
    assert mean_average_precision(truth, backward, tiou=[0.1])["mAP"] == [0.0]
    assert pair_tiou(np.array([[5.0, 5.0]]), np.array([[5.0, 5.0]])) == [0.0]


@pytest.mark.parametrize(
    "entry",
    [
        found(0, 1, "jump", float("nan")),
        found(0, float("inf"), "jump", 0.5),
        {"segment": [0, 1], "label": "jump"},
        {"segment": [0, 1, 2], "label": "jump", "score": 0.5},
        {"segment": None, "label": "jump", "score": 0.5},
        {"segment": [0, 1], "label": ["jump"], "score": 0.5},
        "not a detection",
    ],
)
def test_a_detection_that_cannot_be_read_is_named(entry):
    truth = {"v": video((0, 10, "jump"))}
    with pytest.raises(ValueError, match=r"detections of 'v', entry 1: got .*, want"):
        mean_average_precision(truth, {"v": [found(0, 1, "jump", 0.5), entry]})


def test_no_true_action_at_all_is_an_error_not_a_number():
    with pytest.raises(ValueError, match="1 videos without a single action"):
        mean_average_precision({"v": video()}, {"v": []})


def test_dropping_duplicates_leaves_out_repeats_within_a_millisecond_and_empty_actions():
    truth = {"v": video((0, 10, "jump"), (0.0005, 10, "jump"), (0, 10, "run"), (3, 3, "jump"))}
    detections = {"v": [found(0, 10, "jump", 0.9), found(0, 10, "run", 0.9)]}
    kept = mean_average_precision(truth, detections, tiou=[0.5])
    dropped = mean_average_precision(truth, detections, tiou=[0.5], drop_duplicates=True)
    assert (kept["num_truth"], dropped["num_truth"]) == (4, 2)
    assert kept["per_class"]["jump"] == pytest.approx([1 / 3])
    assert dropped["per_class"]["jump"] == [1.0]


@pytest.mark.parametrize("begin", [0.0, 100.0, -0.003, 1e9])
@pytest.mark.parametrize("step", [0.0005, 0.001, 0.00099])
def test_dropped_duplicates_are_those_of_comparing_all_with_all(begin, step):
    """In any order, with ends on the borders of cells, a millisecond apart, and a rounding more or less."""
    rng = np.random.default_rng(int(1e6 * step))
    starts, lengths = begin + step * rng.integers(0, 30, 600), step * rng.integers(-1, 8, 600)
    ends, labels = starts + lengths, rng.choice(["a", "b"], 600).tolist()
    truth = {"v": video(*zip(starts.tolist(), ends.tolist(), labels, strict=True))}
    kept: list[Action] = []
    for action in truth["v"].actions:
        if action.end > action.start and not any(is_duplicate(action, other) for other in kept):
            kept.append(action)
    table = ground_truth_table(truth, {"a": 0, "b": 1}, drop_duplicates=True)
    assert table.segments.tolist() == [[action.start, action.end] for action in kept]
    assert table.label.tolist() == ["ab".index(action.label) for action in kept]


@pytest.mark.parametrize("far", ["start", "end"])
def test_dropping_duplicates_does_not_grow_with_the_square_of_their_number(monkeypatch, far):
    compared = []
    monkeypatch.setattr(duplicates, "is_duplicate", lambda a, b: compared.append(a))
    actions = [(float(n), 2000.0, "a") if far == "start" else (0.0, 2000.0 + n, "a") for n in range(1000)]
    table = ground_truth_table({"v": video(*actions)}, {"a": 0}, drop_duplicates=True)
    assert len(table.label) == 1000 and not compared


@pytest.mark.slow
def test_dropping_duplicates_gives_the_validation_count_that_activitynet_prints(shared_real):
    truth = read_annotations(
        shared_real / "annotations" / "anet13" / "anet13_rebuilt_trainval_gt.json", subset="validation"
    )
    assert mean_average_precision(truth, {}, tiou=[0.5])["num_truth"] == 7293
    assert mean_average_precision(truth, {}, tiou=[0.5], drop_duplicates=True)["num_truth"] == 7271


def test_average_precision_interpolates_from_the_right():
    hit = np.array([[False, True, True, False]])
    # precision 0, 1/2, 2/3, 1/2: both hits count with 2/3, the better one to their right
    area = Curves(hit, np.zeros(4, dtype=int), 1).area(np.ones(4), np.array([4]))
    assert area == pytest.approx(2 * (2 / 3) / 4)


def test_thresholds_are_read_from_protocols_ranges_and_lists():
    assert parse_tiou("thumos") == ((0.3, 0.4, 0.5, 0.6, 0.7), "thumos")
    assert parse_tiou("activitynet")[0] == tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
    assert parse_tiou("0.1:0.1:0.9")[0] == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert parse_tiou("0.5,0.75") == ((0.5, 0.75), "0.5,0.75")


@pytest.mark.parametrize(
    "text",
    ["", "anet", "0.5:0.9", "0.5:0:0.9", "0:0.1:1", "0.9,0.5", "0.5,0.5", "1.5", "nan", "0.5:1e-9:0.9"],
)
def test_thresholds_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError, match="^tiou: got"):
        parse_tiou(text)


def test_the_table_has_a_column_for_each_threshold_and_the_average():
    metrics = mean_average_precision(
        {"v": video((0, 10, "jump"))}, {"v": [found(0, 6, "jump", 1)]}, protocol="thumos"
    )
    head, body = format_map_table(metrics).splitlines()
    assert head.split() == ["tIoU", "0.3", "0.4", "0.5", "0.6", "0.7", "average"]
    assert body.split() == ["mAP", "%", "100.00", "100.00", "100.00", "100.00", "0.00", "80.00"]
