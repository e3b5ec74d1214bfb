"""What a viewer page says about a video: true actions, detections, how well they fit, one measure of error.

All overlaps and verdicts come from the evaluation's own functions; a page only looks them up. A detection is
right when the protocol matches it with a true action of its class at tIoU 0.5, in the order of score, each
action once; this depends on no score threshold, as only higher scores can take an action away.

The error of a video at a score threshold is `missed + false`, 0 (perfect) to 2 (nothing right):
    missed  1 - mean over its true actions of the best tIoU with a shown detection of the same class; 0 where
            there is no true action
    false   share of the shown detections' summed score that is wrong or a repeat; 0 if none is shown
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.annotations import Video
from train.evaluation.matching import detection_table, overlapping_pairs
from train.evaluation.operating_point import MatchedDetections, matched_detections, operating_point

# Where no truth says which threshold is best: at least this part of the videos' usual best score, and at most
# so many detections per video on average.
READABLE_PART = 0.3
READABLE_COUNT = 10
LEAST_TIOU = 1e-9  # any overlap at all
STRIP_STEPS = 1000  # resolution of a strip on the index page


@dataclass(frozen=True)
class PageData:
    """Everything the pages show. Rows of `judged` count videos and classes; n detections, m true actions.

    best_tiou (n,): with the best true action of the same class and video, best_action (n,): its row, or -1.
    stairs: per true action, (score, tIoU) by falling score and rising tIoU: at a threshold, the last one
    with at least this score is the best that is shown. threshold: where the pages begin.
    """

    judged: MatchedDetections
    durations: tuple[float | None, ...]
    has_truth: bool
    best_tiou: np.ndarray
    best_action: np.ndarray
    stairs: tuple[tuple[tuple[float, float], ...], ...]
    threshold: float

    @cached_property
    def detections_of(self) -> list[np.ndarray]:
        """The rows of each video's detections, the highest score first."""
        detected = self.judged.detected
        order = np.lexsort((-detected.scores, detected.video))
        edges = np.searchsorted(detected.video[order], np.arange(len(self.judged.keys) + 1))
        return [order[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]

    @cached_property
    def truth_of(self) -> list[np.ndarray]:
        """The rows of each video's true actions, in file order."""
        video = self.judged.true.video
        edges = np.searchsorted(video, np.arange(len(self.judged.keys) + 1))
        return [np.arange(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    @cached_property
    def shown(self) -> np.ndarray:
        """Which detections are shown at first: (n,) of bool."""
        return self.judged.detected.scores >= self.threshold


def collect(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    truth: Mapping[str, Video] | None,
    durations: Mapping[str, float] | None = None,
) -> PageData:
    """Match the detections {video: [{"segment", "label", "score"}]} of all videos with their truth, if any.

    Videos that only the truth has are left out. durations: seconds of videos whose truth does not say them.
    ValueError naming video and entry if a detection is unsound.
    """
    known, stated = truth or {}, durations or {}
    detection_table(results, {}, {})  # refuses unsound entries by name
    videos = {key: known.get(key) or Video(key, "", None, ()) for key in results}
    judged = matched_detections(videos, {key: [_cut(row) for row in rows] for key, rows in results.items()})
    tiou, action, stairs = _overlaps(judged)
    return PageData(
        judged,
        tuple(video.duration or stated.get(key) for key, video in videos.items()),
        truth is not None,
        tiou,
        action,
        stairs,
        _short(_first_threshold(judged)),
    )


def _first_threshold(judged: MatchedDetections) -> float:
    """Where F1 is best over all videos; if nothing is right or known, what leaves a readable number."""
    best = operating_point(judged).score
    if math.isfinite(best) or not len(judged.detected.scores):
        return best if math.isfinite(best) else 0.0
    scores = -np.sort(-judged.detected.scores)
    crowded = scores[min(len(scores), READABLE_COUNT * len(judged.keys)) - 1]
    top = np.full(len(judged.keys), -np.inf)
    np.maximum.at(top, judged.detected.video, judged.detected.scores)
    usual = np.median(top[np.isfinite(top)])
    return float(max(crowded, min(READABLE_PART * usual, scores[0])))


def _overlaps(
    judged: MatchedDetections,
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[tuple[float, float], ...], ...]]:
    """Best tIoU and true action of each detection, and the stairs of each true action (see Material)."""
    true, detected, groups = judged.true, judged.detected, len(judged.keys)
    detection, action, tiou = overlapping_pairs(  # a class of a video is a group of its own
        replace(detected, video=detected.label * groups + detected.video),
        replace(true, video=true.label * groups + true.video),
        LEAST_TIOU,
    )
    best_tiou = np.zeros(len(detected.scores))
    best_action = np.full(len(detected.scores), -1)
    first = np.unique(detection, return_index=True)[1]  # pairs come by falling tIoU
    best_tiou[detection[first]], best_action[detection[first]] = tiou[first], action[first]
    steps = _stairs(action, detected.scores[detection], tiou)
    return best_tiou, best_action, tuple(steps.get(row, ()) for row in range(len(true.scores)))


def _stairs(
    action: np.ndarray, score: np.ndarray, tiou: np.ndarray
) -> dict[int, tuple[tuple[float, float], ...]]:
    """Per true action, the pairs (score, tIoU) that beat all pairs of a higher score."""
    order = np.lexsort((-tiou, -score, action))
    action, score, tiou = action[order], score[order], tiou[order]
    level = tiou + 2.0 * action  # tIoU is at most 1: the running maximum starts anew with each action
    before = np.concatenate([[-1.0], np.maximum.accumulate(level)[:-1]]) if len(level) else level
    steps: dict[int, list[tuple[float, float]]] = {}
    for place in np.flatnonzero(level > before):
        steps.setdefault(int(action[place]), []).append((_short(score[place]), round(float(tiou[place]), 4)))
    return {row: tuple(pairs) for row, pairs in steps.items()}


@dataclass(frozen=True)
class Errors:
    """Per video, each (videos,): missed and false as the head of this file defines them."""

    missed: np.ndarray
    false: np.ndarray

    @property
    def total(self) -> np.ndarray:
        error: np.ndarray = self.missed + self.false
        return error


def video_errors(material: PageData) -> Errors:
    """The error of each video at the first threshold."""
    judged, count = material.judged, len(material.judged.keys)
    best = [
        next((tiou for score, tiou in reversed(steps) if score >= material.threshold), 0.0)
        for steps in material.stairs
    ]
    true = np.bincount(judged.true.video, minlength=count)
    found = np.bincount(judged.true.video, weights=np.array(best, dtype=float), minlength=count)
    video, shown = judged.detected.video, material.shown
    weight = np.maximum(judged.detected.scores, 0.0) + 1e-12  # all scores 0: every detection counts alike
    mass = np.bincount(video[shown], weights=weight[shown], minlength=count)
    wrong = shown & ~judged.hit
    false = np.bincount(video[wrong], weights=weight[wrong], minlength=count) / np.maximum(mass, 1e-12)
    return Errors(np.where(true > 0, 1 - found / np.maximum(true, 1), 0.0), false)


def order_of(material: PageData) -> list[int]:
    """Video numbers as the index lists them: by falling error; without truth by shown number, then score."""
    scores = [float(material.judged.detected.scores[rows[:1]].sum()) for rows in material.detections_of]
    shown = [int(material.shown[rows].sum()) for rows in material.detections_of]
    errors = video_errors(material).total if material.has_truth else np.zeros(len(scores))
    return sorted(
        range(len(scores)), key=lambda i: (-errors[i], -shown[i], -scores[i], material.judged.keys[i])
    )


def length_of(material: PageData, video: int) -> float:
    """Seconds the time axis spans: the annotated duration, or the last segment's end; never 0."""
    ends = [
        material.judged.true.segments[material.truth_of[video], 1],
        material.judged.detected.segments[material.detections_of[video], 1],
    ]
    last = float(np.concatenate(ends).max(initial=0.0))
    return round(max(material.durations[video] or 0.0, last) or 1.0, 3)


def page_data(material: PageData, video: int) -> dict[str, Any]:
    """What the viewer's script reads for one video; classes by place in "classes", times in seconds.

    truth: [class, start, end, stairs]. detections, by falling score: [class, start, end, score, tIoU with
    the best true action, its place in truth or -1, 1 if right].
    """
    judged = material.judged
    true, detected = material.truth_of[video], material.detections_of[video]
    used = np.unique(np.concatenate([judged.true.label[true], judged.detected.label[detected]]))
    place = {int(label): number for number, label in enumerate(used)}
    first = int(true[0]) if len(true) else 0
    return {
        "name": judged.keys[video],
        "length": length_of(material, video),
        "classes": [judged.labels[int(label)] for label in used],
        "hasTruth": material.has_truth,
        "threshold": material.threshold,
        "topScore": _short(judged.top_score),
        "truth": [
            [place[int(judged.true.label[row])], *_times(judged.true.segments[row]), material.stairs[row]]
            for row in true
        ],
        "detections": [
            [
                place[int(judged.detected.label[row])],
                *_times(judged.detected.segments[row]),
                _short(judged.detected.scores[row]),
                round(float(material.best_tiou[row]), 4),
                int(material.best_action[row]) - first if material.best_action[row] >= 0 else -1,
                int(judged.hit[row]),
            ]
            for row in detected
        ],
    }


def index_row(material: PageData, video: int, errors: Errors) -> list[Any]:
    """A video on the index: name, seconds, true actions, detections shown, missed, false, top score, strips.

    The two strips are [start, end] and [start, end, 1 if right] in thousandths of the length.
    """
    judged = material.judged
    rows = material.detections_of[video]
    shown = rows[material.shown[rows]]
    scale = STRIP_STEPS / length_of(material, video)
    top = float(judged.detected.scores[rows[:1]].sum())
    return [
        judged.keys[video],
        length_of(material, video),
        len(material.truth_of[video]),
        len(shown),
        round(float(errors.missed[video]), 4),
        round(float(errors.false[video]), 4),
        _short(top),
        [_places(judged.true.segments[row], scale) for row in material.truth_of[video]],
        [[*_places(judged.detected.segments[row], scale), int(judged.hit[row])] for row in shown],
    ]


def _times(segment: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in segment]


def _places(segment: np.ndarray, scale: float) -> list[int]:
    return [int(round(float(value) * scale)) for value in segment]


def _short(value: float) -> float:
    """Six digits: threshold and scores are cut alike, so that nothing changes sides."""
    return float(f"{float(value):.6g}")


def _cut(row: Mapping[str, Any]) -> dict[str, Any]:
    """A detection whose score the pages can show: every comparison is with what they show."""
    return {**row, "score": _short(row["score"])}
