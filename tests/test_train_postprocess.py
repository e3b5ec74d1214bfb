"""From raw windows to detections: scores, seconds, suppression over windows and classes, external scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.annotations import Action, Video
from train.detections import write_detections
from train.evaluation.average_precision import mean_average_precision
from train.postprocess import PostSettings, RawWindow, boundary_scores, is_peak, postprocess_video

HARD = PostSettings(nms="hard", nms_tiou=0.5)


def window(
    segments, quality, class_scores, *, span=(0.0, 10.0), duration=100.0, num_steps=10, key="v", boundary=None
):
    """A window of 10 steps, one second each, unless stated otherwise."""
    boundary = np.ones((2, num_steps)) if boundary is None else boundary
    return RawWindow(
        key=key,
        window=span,
        duration=duration,
        num_steps=num_steps,
        segments=np.array(segments, dtype=np.float32).reshape(-1, 2),
        quality=np.array(quality, dtype=np.float32),
        class_scores=np.array(class_scores, dtype=np.float32),
        boundary=np.array(boundary, dtype=np.float32),
    )


def random_window(seed: int, *, num_proposals=60, num_classes=3) -> RawWindow:
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.uniform(0, 10, (num_proposals, 2)), axis=1)
    return window(segments, rng.random(num_proposals), rng.random((num_proposals, num_classes)))


def test_the_score_is_quality_times_class_score_in_seconds_of_the_video():
    raw = window([[2, 6]], [0.5], [[0.5, 0.25]], span=(20.0, 40.0))
    assert postprocess_video([raw], ["jump", "run"], PostSettings()) == [
        {"segment": [24.0, 32.0], "label": "jump", "score": 0.25},
        {"segment": [24.0, 32.0], "label": "run", "score": 0.125},
    ]


def test_exponents_weigh_the_factors_and_zero_leaves_one_out():
    raw = window([[2, 6]], [0.25], [[0.5]])
    settings = PostSettings(quality_power=0.5, class_power=0.0)
    assert postprocess_video([raw], ["jump"], settings)[0]["score"] == 0.5


def test_the_boundary_factor_reads_the_probability_at_both_ends():
    boundary = np.zeros((2, 10))
    boundary[0, 2], boundary[1, 5] = 0.5, 0.8  # step s is centred at s + 0.5
    raw = window([[2.5, 5.5], [3.0, 5.5]], [1, 1], [[1], [1]], boundary=boundary)
    np.testing.assert_allclose(boundary_scores(raw), [0.4, 0.2], rtol=1e-6)  # float32 inputs
    best = postprocess_video([raw], ["jump"], PostSettings(boundary_power=1))[0]
    assert best["score"] == pytest.approx(0.4, rel=1e-6)


def test_peaks_are_above_both_neighbours_or_above_half_of_the_highest():
    scores = np.array([0.2, 0.1, 0.3, 0.3, 0.1, 0.2, 0.9, 0.5, 0.45, 0.1], dtype=np.float32)
    # the first has none before it; equal neighbours are no peak; exactly half of the highest is not above it
    assert np.flatnonzero(is_peak(scores)).tolist() == [0, 6, 7]
    assert is_peak(np.zeros(3)).tolist() == [False] * 3 and is_peak(np.ones(2)).all()


def test_proposals_whose_ends_are_no_peaks_are_dropped_if_asked():
    boundary = np.full((2, 10), 0.1)
    boundary[0, 3], boundary[1, 7] = 0.9, 0.8
    segments = [[3.9, 7.2], [0.5, 10], [2.9, 7.5], [3.1, 8.0]]  # the window's own ends count
    raw = window(segments, [0.9, 0.8, 0.7, 0.6], [[1]] * 4, boundary=boundary)
    kept = postprocess_video([raw], ["jump"], PostSettings(boundary_peaks=True))
    assert [d["segment"] for d in kept] == [[3.9, 7.2], [0.5, 10.0]]
    assert len(postprocess_video([raw], ["jump"], PostSettings())) == 4


def test_an_action_seen_by_two_windows_is_reported_once():
    seen_twice = [
        window([[6, 9]], [0.9], [[0.9]], span=(0.0, 10.0)),
        window([[1, 4]], [0.8], [[0.9]], span=(5.0, 15.0)),
    ]
    assert [d["segment"] for d in postprocess_video(seen_twice, ["jump"], HARD)] == [[6.0, 9.0]]


def test_suppression_leaves_other_classes_alone():
    raw = window([[1, 5], [1.2, 5]], [0.9, 0.8], [[0.9, 0.0], [0.0, 0.9]])
    labels = [d["label"] for d in postprocess_video([raw], ["jump", "run"], HARD)]
    assert labels == ["jump", "run"]


@pytest.mark.parametrize("nms", ["gaussian", "linear", "hard"])
def test_all_classes_at_once_equal_one_class_after_another(nms):
    settings = PostSettings(nms=nms, nms_tiou=0.3, max_detections=1000)
    raws, names = [random_window(0), random_window(1)], ["a", "b", "c"]
    together = postprocess_video(raws, names, settings)
    apart = []
    for index, name in enumerate(names):
        alone = [window(raw.segments, raw.quality, raw.class_scores[:, [index]]) for raw in raws]
        apart += postprocess_video(alone, [name], settings)
    apart.sort(key=lambda d: -d["score"])
    assert together == apart


def test_detections_stay_inside_the_video_and_those_outside_go():
    raw = window([[0, 5], [8, 10]], [0.9, 0.9], [[1], [1]], span=(-2.0, 8.0), duration=5.0)
    assert [d["segment"] for d in postprocess_video([raw], ["jump"], PostSettings())] == [[0.0, 3.0]]


def test_only_the_best_are_kept_best_first():
    detections = postprocess_video([random_window(0)], ["a", "b", "c"], PostSettings(max_detections=7))
    scores = [d["score"] for d in detections]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    every = postprocess_video([random_window(0)], ["a", "b", "c"], PostSettings(max_detections=1000))
    assert every[:7] == detections


def test_weak_detections_are_dropped():
    raw = window([[1, 2], [5, 9]], [0.9, 0.1], [[1], [1]])
    assert len(postprocess_video([raw], ["jump"], PostSettings(min_score=0.5))) == 1
    assert postprocess_video([raw], ["jump"], PostSettings(min_score=0.95)) == []


def test_what_scores_nothing_is_no_detection_even_if_all_scores_will_do():
    raw = window([[1, 2], [5, 9]], [0.0, 1e-30], [[1], [1]])
    (detection,) = postprocess_video([raw], ["jump"], PostSettings(min_score=0))
    assert detection["segment"] == [5.0, 9.0]


def test_few_candidates_before_the_suppression_are_the_best_ones():
    raw = random_window(3)
    few = postprocess_video([raw], ["a", "b", "c"], PostSettings(nms="hard", nms_tiou=0.9, pre_nms_topk=5))
    assert len(few) <= 5
    score = (raw.quality[:, None] * raw.class_scores).max()
    assert few[0]["score"] == pytest.approx(float(score))


@pytest.mark.parametrize("topk", [1, 7, 299, 300, 301, 2000])
def test_exactly_the_best_candidates_of_a_window_enter_the_suppression(topk):
    raw = random_window(4, num_proposals=300)
    settings = PostSettings(nms="hard", nms_tiou=0.999, min_score=0, max_detections=1000, pre_nms_topk=topk)
    found = postprocess_video([raw], ["a", "b", "c"], settings)
    scores = np.sort((raw.quality[:, None] * raw.class_scores).ravel())[::-1]
    assert [d["score"] for d in found] == [float(str(score)) for score in scores[: min(topk, 1000)]]


def test_nothing_in_nothing_out():
    assert postprocess_video([], ["jump"], PostSettings()) == []
    assert postprocess_video([window([], [], np.zeros((0, 1)))], ["jump"], PostSettings()) == []


def test_external_scores_give_the_two_best_labels_of_the_video():
    raw = window([[1, 5]], [0.5], [[0.9, 0.9]])
    external = {"v": {"cook": 0.2, "swim": 0.8, "ski": 0.5}}
    assert postprocess_video([raw], ["jump", "run"], PostSettings(), external_scores=external) == [
        {"segment": [1.0, 5.0], "label": "swim", "score": 0.4},
        {"segment": [1.0, 5.0], "label": "ski", "score": 0.25},
    ]
    with pytest.raises(ValueError, match="external scores: none for video 'v'"):
        postprocess_video([raw], ["jump", "run"], PostSettings(), external_scores={"w": {"ski": 1.0}})


@pytest.mark.parametrize("field", ["segments", "quality", "class_scores"])
def test_an_output_that_is_not_finite_is_named_not_measured(field):
    raw = random_window(0)
    getattr(raw, field)[3] = np.nan
    with pytest.raises(ValueError, match="raw output of 'v', window"):
        postprocess_video([raw], ["a", "b", "c"], PostSettings())


def test_windows_of_two_videos_are_not_mixed():
    with pytest.raises(ValueError, match="windows of a, b"):
        postprocess_video([window([[1, 2]], [1], [[1]], key=key) for key in "ab"], ["jump"], PostSettings())


def test_hard_suppression_without_a_threshold_is_refused():
    with pytest.raises(ValidationError, match="nms_tiou: got 0 with nms=hard"):
        PostSettings(nms="hard")


def test_map_from_the_file_equals_map_from_memory(tmp_path):
    names = ["a", "b", "c"]
    results = {
        f"v{seed}": postprocess_video([random_window(seed)], names, PostSettings()) for seed in range(3)
    }
    path = tmp_path / "detections.json"
    write_detections(path, results, metadata={"subset": "validation"})
    document = json.loads(path.read_text())
    assert document["version"] == "leantad-1"
    assert document["external_data"] == {"subset": "validation"}
    assert document["results"] == results
    truth = {key: Video(key, "validation", 10.0, (Action(2, 6, "a"), Action(4, 5, "c"))) for key in results}
    assert mean_average_precision(truth, document["results"]) == mean_average_precision(truth, results)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_videos_is_still_json(tmp_path):
    write_detections(tmp_path / "d.json", {}, metadata={})
    assert json.loads((tmp_path / "d.json").read_text())["results"] == {}


def test_segments_are_exact_to_a_tenth_of_a_millisecond():
    raw = random_window(5, num_classes=1)
    detections = postprocess_video([raw], ["a"], PostSettings(max_detections=1000, min_score=0))
    best = int((raw.quality * raw.class_scores[:, 0]).argmax())
    np.testing.assert_allclose(detections[0]["segment"], raw.segments[best], rtol=0, atol=0.51e-4)
    assert any(value != round(value, 2) for entry in detections for value in entry["segment"])
