"""The thresholds with the best F1, per class, and how a checkpoint hands them on."""

from __future__ import annotations

import pytest
from metric_cases import found, random_case, video

from train.evaluation.class_thresholds import THRESHOLDS, choose_thresholds, read_thresholds
from train.evaluation.operating_point import matched_detections, operating_point

TRUTH = {
    "v": video("v", (0, 10, "jump"), (20, 30, "run")),
    "w": video("w", (0, 10, "jump"), (20, 30, "sit")),
}
RESULTS = {
    "v": [found(0, 10, "jump", 0.9), found(12, 15, "jump", 0.3), found(20, 30, "run", 0.1)],
    "w": [found(0, 10, "jump", 0.5), found(0, 5, "run", 0.05), found(0, 9, "fly", 0.4)],
}


def best_f1(pairs: list[tuple[float, bool]], num_true: int) -> tuple[float, float]:
    """The best F1, and the highest score that gives it, by trying every score."""
    tried = []
    for score in {score for score, _ in pairs}:
        shown = [hit for other, hit in pairs if other >= score]
        tried.append((2 * sum(shown) / (len(shown) + num_true), score))
    return max(tried)


def test_each_class_has_the_score_of_its_best_f1():
    chosen = choose_thresholds(TRUTH, RESULTS, subset="val")
    assert chosen is not None and chosen.subset == "val"
    assert {name: (one.score, one.f1) for name, one in chosen.classes.items()} == {
        "jump": (0.5, 1.0),
        "run": (0.1, 1.0),
    }
    assert (chosen.overall.score, chosen.overall.f1) == (0.5, 2 * 2 / (2 + 4))
    scores = chosen.scores(["jump", "run", "sit"])
    assert scores == {"jump": 0.5, "run": 0.1, "sit": chosen.overall.score}


@pytest.mark.parametrize("seed", range(60))
def test_thresholds_are_those_of_trying_every_score(seed):
    truth, results = random_case(seed)
    matched = matched_detections(truth, results)
    chosen = choose_thresholds(truth, results, subset="val")
    rows = list(zip(matched.detected.label, matched.detected.scores, matched.hit, strict=True))
    point, num_true = operating_point(matched), len(matched.true.label)
    if chosen is not None:
        wanted = best_f1([(score, hit) for _, score, hit in rows], num_true)
        assert (chosen.overall.f1, chosen.overall.score) == (point.f1, point.score) == wanted
    for number, name in enumerate(matched.labels):
        pairs = [(score, hit) for label, score, hit in rows if label == number]
        if not any(hit for _, hit in pairs):
            assert chosen is None or name not in chosen.classes
            continue
        assert chosen is not None
        f1, score = best_f1(pairs, int((matched.true.label == number).sum()))
        assert (chosen.classes[name].f1, chosen.classes[name].score) == (f1, score)


def test_without_a_right_detection_there_are_none():
    wrong = {"v": [found(12, 15, "jump", 0.3)]}
    assert choose_thresholds(TRUTH, wrong, subset="val") is None
    assert choose_thresholds(TRUTH, {}, subset="val") is None


def test_a_checkpoint_hands_them_on_exactly(tmp_path):
    chosen = choose_thresholds(TRUTH, RESULTS, subset="val")
    assert chosen is not None
    (tmp_path / THRESHOLDS).write_text(chosen.model_dump_json())
    assert read_thresholds(tmp_path) == chosen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"subset": "v", "overall": {"score": NaN, "f1": 1}, "classes": {}}',
        '{"subset": "v", "overall": {"score": 1, "f1": 1}, "classes": {"a": 3}}',
        '{"subset": "v", "overall": {"score": 1, "f1": 1}, "classes": {}, "more": 1}',
        "[" * 100_000,
    ],
)
def test_damaged_thresholds_are_one_line(tmp_path, text):
    (tmp_path / THRESHOLDS).write_text(text)
    with pytest.raises(ValueError, match="thresholds.json") as caught:
        read_thresholds(tmp_path)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
