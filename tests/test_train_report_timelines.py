"""The report's timelines: right as matched, videos chosen evenly, nothing covered, omissions stated."""

from __future__ import annotations

import numpy as np
import pytest
from metric_cases import found
from report_cases import GROUND_TRUTH, RESULTS, parsed

from pipeline.annotations import Action, Video
from train.evaluation.operating_point import (
    matched_detections,
    operating_point,
    precision_recall,
    video_scores,
)
from train.report.timelines import (
    FEW,
    MAX_LANES,
    choose_videos,
    clock,
    clock_axis,
    lanes_of,
    rows_of,
    timeline,
    video_summary,
)


def test_each_true_action_is_hit_once_and_by_the_best_score():
    matches = matched_detections(GROUND_TRUTH, RESULTS)
    assert matches.hit.tolist() == [True, True, False, False, True]


def test_the_working_point_is_where_f1_is_best():
    point = operating_point(matched_detections(GROUND_TRUTH, RESULTS))
    # scores 0.9, 0.85, 0.8 are right, 0.7 is wrong: three of three, of five true actions
    assert (point.score, point.precision, point.recall) == (0.8, 1.0, 0.6)
    assert point.f1 == pytest.approx(0.75)
    nothing = operating_point(matched_detections(GROUND_TRUTH, {}))
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_equal_scores_are_all_shown_or_none_at_the_operating_point():
    """Two right ones come first in the file, then two right and four wrong ones of the same score."""
    truth = {name: Video(name, "val", 100.0, (Action(10.0, 20.0, "run"),)) for name in "abcd"}
    right, wrong = found(10, 20, "run", 1.0), [found(50, 60, "run", 1.0), found(70, 80, "run", 1.0)]
    results = {"a": [right], "b": [right], "c": [right, *wrong], "d": [right, *wrong]}
    point = operating_point(matched_detections(truth, results))
    assert (point.score, point.precision, point.recall) == (1.0, 0.5, 1.0)
    assert point.f1 == pytest.approx(2 / 3)


def test_videos_are_shown_from_the_best_to_the_worst():
    matches = matched_detections(GROUND_TRUTH, RESULTS)
    scores = video_scores(matches, operating_point(matches))
    np.testing.assert_allclose(scores, [1.0, 0.0, 2 / 3, np.nan])
    assert [matches.keys[i] for i in choose_videos(scores, 8)] == ["good", "half", "bad"]
    assert [matches.keys[i] for i in choose_videos(scores, 2)] == ["good", "bad"]
    assert choose_videos(scores, 0) == []


def test_detections_of_unknown_videos_lower_the_precision_and_break_nothing():
    matches = matched_detections(
        GROUND_TRUTH, {**RESULTS, "unknown": [found(0, 1, "jump", 0.95), found(0, 1, "fly", 0.1)]}
    )
    assert operating_point(matches).precision == 0.75
    assert video_scores(matches, operating_point(matches))[0] == 1.0
    assert "fly" in matches.labels


def test_precision_never_falls_towards_less_recall():
    points = precision_recall(matched_detections(GROUND_TRUTH, RESULTS))
    precision = [p for _, p in points]
    assert precision == sorted(precision, reverse=True)
    assert points[-1][0] == pytest.approx(60)
    assert precision_recall(matched_detections(GROUND_TRUTH, {})) == []


def test_a_timeline_has_a_band_for_each_true_action_and_a_bar_for_each_detection_of_its_lanes():
    matches = matched_detections(GROUND_TRUTH, RESULTS)
    drawn = parsed(timeline(matches, 0, 30.0, operating_point(matches)))
    kinds = [attributes.get("class") for _, attributes in drawn.seen]
    assert (kinds.count("action"), kinds.count("hit"), kinds.count("wrong weak")) == (2, 2, 1)
    for video, key in enumerate(matches.keys):
        parsed(timeline(matches, video, GROUND_TRUTH[key].duration, operating_point(matches)))


def weak_case(count=200):
    """One video, one right detection of the lowest score, the others near it and wrong."""
    ground_truth = {"v": Video("v", "validation", 100.0, (Action(40, 60, "jump"),))}
    wrong = [found(i % 90, i % 90 + 9, "run" if i % 2 else "jump", 0.02 + i * 1e-6) for i in range(count - 1)]
    return ground_truth, {"v": [*wrong, found(40, 60, "jump", 0.019)]}


def test_of_hundreds_of_detections_the_best_are_drawn_with_those_that_are_right():
    ground_truth, results = weak_case()
    matches = matched_detections(ground_truth, results)
    drawn = [row for _, rows in lanes_of(matches, 0, operating_point(matches)) for row in rows]
    assert len(drawn) == FEW + 2 and matches.hit[drawn].sum() == 1
    wrong = sorted(matches.detected.scores[~matches.hit])[-FEW - 1 :]
    assert sorted(matches.detected.scores[drawn])[1:] == wrong
    summary = video_summary(matches, 0, 100.0, operating_point(matches))
    assert summary == "1 true action, 1 min 40 s, 12 of 200 detections shown"


def test_what_is_wrong_is_drawn_as_wrong_where_nothing_is_right():
    matches = matched_detections(GROUND_TRUTH, {"good": [found(26, 29, "fly", 0.5)]})
    assert '<rect class="wrong"' in timeline(matches, 0, 30.0, operating_point(matches))


def test_classes_without_a_lane_are_counted():
    actions = [Action(i, i + 1, f"class {i}") for i in range(15)] + [Action(20, 21, "class 14")]
    matches = matched_detections({"v": Video("v", "validation", 30.0, tuple(actions))}, {})
    lanes = [matches.labels[label] for label, _ in lanes_of(matches, 0, operating_point(matches))]
    assert len(lanes) == MAX_LANES and "class 14" in lanes  # it has the most true actions
    assert "12 of 15 classes shown" in video_summary(matches, 0, 30.0, operating_point(matches))


def test_detections_of_a_lane_never_cover_each_other():
    random = np.random.default_rng(0)
    extents = [(float(left), float(width)) for left, width in random.uniform(0, 50, (40, 2))]
    rows = rows_of(extents)
    assert rows[0] == 0 and sorted(set(rows)) == list(range(max(rows) + 1))
    for row in set(rows):
        own = sorted(extent for extent, own_row in zip(extents, rows, strict=True) if own_row == row)
        assert all(left + width < after for (left, width), (after, _) in zip(own, own[1:], strict=False))


def test_a_day_of_video_has_few_marks():
    for longest in (181, 3600, 3 * 3600, 24 * 3600):
        assert 3 <= len(clock_axis(longest).ticks) <= 11


def test_bars_lie_where_their_seconds_are():
    matches = matched_detections(GROUND_TRUTH, RESULTS)
    drawn = parsed(timeline(matches, 0, 30.0, operating_point(matches)))
    bands = [a for _, a in drawn.seen if a.get("class") == "action"]
    ticks = [a for name, a in drawn.seen if name == "line" and a.get("class") == "mark"]
    left, right = float(ticks[0]["x1"]), float(ticks[-1]["x1"])  # 0 s and 30 s
    assert float(bands[0]["x"]) == pytest.approx(left, abs=0.1)
    assert float(bands[1]["x"]) == pytest.approx((left + right) / 2, abs=0.1)
    assert float(bands[0]["width"]) == pytest.approx((right - left) / 3, abs=0.1)


def test_times_read_well():
    assert [clock(30, 60), clock(210, 400), clock(3810, 7200)] == ["30 s", "3:30", "1:03:30"]
