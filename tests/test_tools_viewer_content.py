"""What the viewer's pages say is what the evaluation says: overlaps, errors, order, first threshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from viewer_cases import GROUND_TRUTH, RESULTS, found, video

from tools.viewer.content import collect, index_row, order_of, video_data, video_errors
from tools.viewer.media import VideoFinder
from tools.viewer.summaries import index_summary, remarks_on, video_summary


def test_a_page_says_where_each_detection_lies_and_how_well_it_fits():
    page_data = collect(RESULTS, GROUND_TRUTH)
    data = video_data(page_data, 0)
    assert data["classes"] == ["fly", "jump", "run"] and data["length"] == 8.0 and data["threshold"] == 0.7
    assert data["detections"] == [
        [1, 1.0, 2.0, 0.9, 1.0, 0, 1],
        [2, 3.0, 5.0, 0.8, 1.0, 1, 1],
        [1, 1.0, 2.5, 0.3, 0.6667, 0, 0],  # a repeat: its action is taken
        [0, 6.0, 7.0, 0.2, 0.0, -1, 0],
    ]
    assert data["actions"] == [[1, 1.0, 2.0, ((0.9, 1.0),)], [2, 3.0, 5.0, ((0.8, 1.0),)]]


def test_a_true_action_knows_its_best_detection_at_every_threshold():
    actions = video_data(collect(RESULTS, GROUND_TRUTH), 1)["actions"]
    assert actions[0] == [0, 0.0, 4.0, ((0.7, 0.5), (0.6, 0.75))]
    assert actions[1] == [0, 5.0, 6.0, ((0.1, 0.25),)]


def test_a_detection_at_the_very_threshold_is_shown_and_counted_alike():
    score = 0.56936574  # more digits than pages show: cut upwards, it would fall below the threshold
    results = {"a": [found(1.0, 2.0, "run", score), found(5.0, 6.0, "run", 0.2)]}
    page_data = collect(results, {"a": video("a", (1.0, 2.0, "run"))})
    assert page_data.threshold == video_data(page_data, 0)["detections"][0][3]
    assert page_data.shown.tolist() == [True, False] and video_errors(page_data).total[0] == 0


def test_overlaps_equal_a_slow_reference_on_random_videos():
    rng = np.random.default_rng(0)

    def segments(count):
        return np.sort(rng.integers(0, 12, (count, 2)), axis=1).astype(float)  # ties and empty ones too

    ground_truth = {k: video(k, *[(a, b, str(rng.integers(3))) for a, b in segments(6)]) for k in "abc"}
    results = {
        k: [found(a, b, str(rng.integers(3)), float(rng.integers(1, 9)) / 8) for a, b in segments(30)]
        for k in "abc"
    }
    page_data = collect(results, ground_truth)
    for number, key in enumerate("abc"):
        data = video_data(page_data, number)
        for label, start, end, _, tiou, match, _ in data["detections"]:
            same = [(i, row) for i, row in enumerate(data["actions"]) if row[0] == label]
            best = max((slow_tiou((start, end), row[1:3]) for _, row in same), default=0.0)
            assert tiou == pytest.approx(best, abs=1e-4)  # four digits are written
            assert match == -1 if best == 0 else slow_tiou((start, end), data["actions"][match][1:3]) == best
        for label, start, end, steps in data["actions"]:
            for threshold in (0.1, 0.5, 0.9):
                shown = [one for one in data["detections"] if one[3] >= threshold and one[0] == label]
                best = max((slow_tiou((start, end), one[1:3]) for one in shown), default=0.0)
                reached = [tiou for score, tiou in steps if score >= threshold]
                assert (reached[-1] if reached else 0.0) == pytest.approx(best, abs=1e-4)
            assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(steps))
        assert data["name"] == key


def slow_tiou(a, b):
    inside = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    union = a[1] - a[0] + b[1] - b[0] - inside
    return inside / union if union > 0 else 0.0


def test_the_error_of_a_video_is_what_it_missed_and_what_it_made_up():
    page_data = collect(RESULTS, GROUND_TRUTH)  # shown from 0.7 on
    errors = video_errors(page_data)
    np.testing.assert_allclose(errors.missed, [0, 1 - 0.5 / 2, 0, 1])
    np.testing.assert_allclose(errors.false, [0, 0, 0, 1], atol=1e-9)
    assert [page_data.matches.keys[i] for i in order_of(page_data)] == ["bad", "half", "good", "empty"]
    assert index_row(page_data, 1, errors)[:7] == ["half", 8.0, 2, 1, 0.75, 0.0, 0.7]
    assert index_row(page_data, 1, errors)[7:] == [[[0, 500], [625, 750]], [[0, 250, 1]]]


def test_false_is_a_share_of_the_shown_score():
    ground_truth = {"a": video("a", (0, 4, "run"), (5, 6, "run"))}
    results = {"a": [found(0, 4, "run", 0.6), found(4, 5, "run", 0.2), found(5, 6, "run", 0.2)]}
    assert video_errors(collect(results, ground_truth)).false[0] == pytest.approx(0.2)
    zeros = {"a": [found(0, 4, "run", 0.0), found(4, 5, "run", 0.0), found(5, 6, "run", 0.0)]}
    assert video_errors(collect(zeros, ground_truth)).false[0] == pytest.approx(
        1 / 3
    )  # every detection counts alike


def test_without_ground_truth_the_first_threshold_leaves_a_readable_number():
    def first(scores):
        results = {
            key: [found(i, i + 1, "run", score) for i, score in enumerate(scores)] for key in ("a", "b")
        }
        return int(collect(results, None).shown.sum()) / 2

    assert first([0.9, 0.8, 0.3, 0.2, 0.1]) == 3  # 0.3 of the best score, and more
    assert first([0.9 - 0.001 * i for i in range(50)]) == 10
    assert first([0.0, 0.0]) == 2 and first([-1.0, -2.0]) == 1
    assert collect({"a": []}, None).threshold == 0
    nothing_right = collect({"bad": RESULTS["bad"]}, GROUND_TRUTH)
    assert nothing_right.threshold == 0.75


def test_without_ground_truth_the_videos_with_most_to_show_come_first():
    results = {
        "few": [found(0, 1, "run", 0.9)],
        "many": [found(i, i + 1, "run", 0.5) for i in range(5)],
        "none": [],
    }
    page_data = collect(results, None)
    assert [page_data.matches.keys[i] for i in order_of(page_data)] == ["many", "few", "none"]


def test_the_time_axis_reaches_the_last_segment_or_the_stated_end():
    results = {"a": [found(2, 9, "run", 0.5)], "b": []}
    assert [video_data(collect(results, None), i)["length"] for i in (0, 1)] == [9.0, 1.0]
    assert video_data(collect(results, None, {"b": 4.0}), 1)["length"] == 4.0
    assert video_data(collect(results, {"a": video("a", duration=None)}, {"a": 20.0}), 0)["length"] == 20.0


def test_names_that_only_detections_or_only_the_ground_truth_have_are_remarked_on():
    results = {**RESULTS, "stray": [found(0, 1, "run", 0.5)], "torn": []}
    ground_truth = {**GROUND_TRUTH, "lost": video("lost", (0, 1, "swim"))}
    page_data, finder = collect(results, ground_truth), VideoFinder()
    assert remarks_on(page_data, ground_truth, finder, {"torn": "is cut"}) == [
        "1 video of the ground truth without an entry in the detections, not listed here: 'lost'",
        "Not in the ground truth, shown as if nothing happened in them: 'stray'",
        "Detected classes that have no true action anywhere: 'fly'",
    ]
    assert index_summary(page_data) == ["6 videos", "9 detections", "5 true actions"]
    assert video_summary(page_data, 0, None) == ["8.0 s", "4 detections", "2 true actions"]
    assert video_summary(page_data, 5, "is cut") == ["not read: is cut", "0 true actions"]
    plain = collect(RESULTS, None)
    assert remarks_on(plain, None, finder, {}) == [] and index_summary(plain) == ["4 videos", "8 detections"]
    assert video_summary(plain, 2, None) == ["1.0 s", "0 detections"]
