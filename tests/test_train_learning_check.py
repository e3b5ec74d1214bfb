"""Whether a run has learned anything: chance against a count by hand, the warning and what it advises."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.annotations import Action, Video
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.chance import DETECTIONS, chance_map, is_chance, random_detections
from train.learning_check import learning_warning
from train.settings import Settings


def video(key: str, duration: float | None, actions: list[tuple]) -> Video:
    return Video(key, "validation", duration, tuple(Action(*action) for action in actions))


VIDEOS = {
    "a": video("a", 60.0, [(0, 10, "run"), (20, 30, "run"), (40, 45, "jump")]),
    "b": video("b", 40.0, [(3, 9, "jump"), (30, 39, "run")]),
    "empty": video("empty", 9.0, []),
    "unstated": video("unstated", None, [(1, 4, "run")]),
}


def test_random_segments_lie_inside_their_videos_and_have_the_lengths_of_true_actions():
    results = random_detections(VIDEOS, seed=0)
    assert set(results) == set(VIDEOS) and all(len(found) == DETECTIONS for found in results.values())
    lengths = {10, 5, 6, 9, 3}
    for key, end in (("a", 60), ("b", 40), ("empty", 9), ("unstated", 4)):
        for item in results[key]:
            start, stop = item["segment"]
            assert start >= 0 and stop <= end + 1e-9 and item["label"] in ("run", "jump")
            assert any(stop - start == pytest.approx(min(length, end)) for length in lengths)
    assert results == random_detections(VIDEOS, seed=0) != random_detections(VIDEOS, seed=1)


def test_random_segments_may_be_those_of_other_actions():
    others = [Action(0.0, 2.0, "swim")]
    found = random_detections(VIDEOS, seed=0, actions=others)
    items = [item for key in VIDEOS if key != "unstated" for item in found[key]]
    assert {item["label"] for item in items} == {"swim"}
    assert all(item["segment"][1] - item["segment"][0] == pytest.approx(2) for item in items)


@pytest.mark.slow
def test_chance_is_that_of_placing_segments_by_hand():
    """One action of 10 s in 100 s: a segment of 10 s hits at tIoU 0.5 if it starts within 10/3 s of it."""
    one = {f"v{i}": video(f"v{i}", 100.0, [(45, 55, "run")]) for i in range(50)}
    hits = 0
    rng = np.random.default_rng(0)
    for start in rng.uniform(0, 90, 20_000):
        inter = max(0.0, min(55, start + 10) - max(45, start))
        hits += inter / (20 - inter) >= 0.5
    precision = hits / 20_000  # 0.074, and every action is hit by some of 100: AP is near that precision
    # A second hit of one action is a false positive, so AP lies below; the envelope lifts it a little.
    assert 0.25 * precision < chance_map(one, protocol="0.5,0.6") < precision


def test_chance_has_no_answer_where_nothing_is_to_be_found():
    with pytest.raises(ValueError, match="without a single action"):
        chance_map({"empty": VIDEOS["empty"]}, protocol="activitynet")


@pytest.mark.parametrize(
    ("found", "chance", "wanted"),
    [
        (0.0, 0.0, True),
        (0.01, 0.0, False),
        (0.12, 0.1, True),
        (0.13, 0.1, False),
        (0.92, 0.9, True),
        (0.93, 0.9, False),
        (1.0, 1.0, True),
    ],
)
def test_an_mAP_is_more_than_chance_from_a_quarter_of_what_could_be_added(found, chance, wanted):
    assert is_chance(found, chance) is wanted


def warning(results, step=100, total_steps=300, **groups) -> str | None:
    metrics = mean_average_precision(VIDEOS, results)
    settings = Settings.model_validate({"data": {"shards": "none"}, **groups})
    return learning_warning(metrics, VIDEOS, settings, step=step, total_steps=total_steps)


def test_nothing_learned_is_told_from_a_third_of_the_steps_on_and_not_before():
    assert warning({}, step=99) is None
    told = warning({}, step=100)
    assert told is not None and told.startswith("after 100 of 300 steps nothing was learned: mAP@0.5 is ")
    perfect = {
        key: [{"label": a.label, "segment": [a.start, a.end], "score": 1.0} for a in item.actions]
        for key, item in VIDEOS.items()
    }
    assert warning(perfect, step=100) is None and warning(perfect, step=300) is None


def test_the_advice_follows_from_the_settings_of_the_run():
    slow = {"encoder_lr": 1e-4, "detector_lr": 5e-4}
    told = warning({}, optimizer=slow, run={"epochs": 30})
    assert "--set optimizer.encoder_lr=0.005 --set optimizer.detector_lr=0.005" in told
    assert "--set run.epochs=60" in told  # 600 of 300 steps
    assert told.endswith("(docs/train-on-your-own-videos.md, If it does not learn)") and "\n" not in told
    fast = {"encoder_lr": 5e-3, "detector_lr": 5e-3}
    told = warning({}, step=1000, total_steps=1000, optimizer=fast)
    assert "--set" not in told and "pretrained encoder.weights" in told and "leantad view" in told
    told = warning({}, optimizer=fast, encoder={"frozen": True})
    assert "--set encoder.frozen=false" in told
    tuned = {"encoder_lr": 1e-6, "detector_lr": 1e-4}
    told = warning({}, optimizer=tuned, encoder={"weights": "some.safetensors"})
    assert "a higher optimizer.detector_lr than 0.0001" in told and "encoder_lr" not in told
