"""What the viewer's pages show of a video: true actions, detections, their tIoU, one measure of error.

All overlaps and matches come from the evaluation's own functions; a page only looks them up. A detection is
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
from train.evaluation.matching import overlapping_pairs
from train.evaluation.operating_point import MatchedDetections, matched_detections, operating_point

# Without ground truth, the pages begin with detections of at least this part of the videos' usual best score,
# and at most so many per video on average.
READABLE_PART = 0.3
READABLE_COUNT = 10
LEAST_TIOU = 1e-9  # any overlap at all
INDEX_UNITS = 1000  # resolution of a timeline on the index page

ScoreTious = tuple[tuple[float, float], ...]  # (score, tIoU) by falling score and rising tIoU


@dataclass(frozen=True)
class PageData:
    """Everything the pages show. Rows of `matches` count videos and classes; n detections, m true actions.

    best_tiou (n,): with the best true action of the same class and video, best_action (n,): its row, or -1.
    tiou_by_score: per true action, (score, tIoU) by falling score and rising tIoU: at a threshold, the
    last one with at least this score is the best that is shown. threshold: where the pages begin.
    """

    matches: MatchedDetections
    durations: tuple[float | None, ...]
    has_ground_truth: bool
    best_tiou: np.ndarray
    best_action: np.ndarray
    tiou_by_score: tuple[ScoreTious, ...]
    threshold: float

    @cached_property
    def detections_of(self) -> list[np.ndarray]:
        """The rows of each video's detections, the highest score first."""
        detected = self.matches.detected
        order = np.lexsort((-detected.scores, detected.video))
        bounds = np.searchsorted(detected.video[order], np.arange(len(self.matches.keys) + 1))
        return [order[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    @cached_property
    def actions_of(self) -> list[np.ndarray]:
        """The rows of each video's true actions, in file order."""
        video = self.matches.true.video
        bounds = np.searchsorted(video, np.arange(len(self.matches.keys) + 1))
        return [np.arange(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    @cached_property
    def shown(self) -> np.ndarray:
        """Which detections are shown at first: (n,) of bool."""
        return self.matches.detected.scores >= self.threshold


def collect(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    ground_truth: Mapping[str, Video] | None,
    durations: Mapping[str, float] | None = None,
) -> PageData:
    """Match the detections {video: [{"segment", "label", "score"}]} of all videos with their true actions.

    results: sound, as read_detections has them. Videos that only the ground truth has are left out.
    durations: seconds of videos whose annotations do not state them.
    """
    annotated, stated = ground_truth or {}, durations or {}
    videos = {key: annotated.get(key) or Video(key, "", None, ()) for key in results}
    matches = matched_detections(
        videos, {key: [_rounded_score(row) for row in rows] for key, rows in results.items()}
    )
    best_tiou, best_action, tiou_by_score = _overlaps(matches)
    return PageData(
        matches=matches,
        durations=tuple(video.duration or stated.get(key) for key, video in videos.items()),
        has_ground_truth=ground_truth is not None,
        best_tiou=best_tiou,
        best_action=best_action,
        tiou_by_score=tiou_by_score,
        threshold=_six_digits(_initial_threshold(matches)),
    )


def _initial_threshold(matches: MatchedDetections) -> float:
    """Where F1 is best over all videos; where nothing is right, what leaves a readable number."""
    best = operating_point(matches).score
    if math.isfinite(best) or not len(matches.detected.scores):
        return best if math.isfinite(best) else 0.0
    scores = -np.sort(-matches.detected.scores)
    crowded = scores[min(len(scores), READABLE_COUNT * len(matches.keys)) - 1]
    top = np.full(len(matches.keys), -np.inf)
    np.maximum.at(top, matches.detected.video, matches.detected.scores)
    usual = np.median(top[np.isfinite(top)])
    return float(max(crowded, min(READABLE_PART * usual, scores[0])))


def _overlaps(matches: MatchedDetections) -> tuple[np.ndarray, np.ndarray, tuple[ScoreTious, ...]]:
    """best_tiou, best_action and tiou_by_score of PageData."""
    true, detected, groups = matches.true, matches.detected, len(matches.keys)
    detection, action, tiou = overlapping_pairs(  # a class of a video is a group of its own
        replace(detected, video=detected.label * groups + detected.video),
        replace(true, video=true.label * groups + true.video),
        LEAST_TIOU,
    )
    best_tiou = np.zeros(len(detected.scores))
    best_action = np.full(len(detected.scores), -1)
    first = np.unique(detection, return_index=True)[1]  # pairs come by falling tIoU
    best_tiou[detection[first]], best_action[detection[first]] = tiou[first], action[first]
    by_action = _tiou_by_score(action, detected.scores[detection], tiou)
    return best_tiou, best_action, tuple(by_action.get(row, ()) for row in range(len(true.scores)))


def _tiou_by_score(action: np.ndarray, score: np.ndarray, tiou: np.ndarray) -> dict[int, ScoreTious]:
    """Per true action, the pairs (score, tIoU) that beat all pairs of a higher score."""
    order = np.lexsort((-tiou, -score, action))
    action, score, tiou = action[order], score[order], tiou[order]
    level = tiou + 2.0 * action  # tIoU is at most 1: the running maximum starts anew with each action
    before = np.concatenate([[-1.0], np.maximum.accumulate(level)[:-1]]) if len(level) else level
    pairs: dict[int, list[tuple[float, float]]] = {}
    for row in np.flatnonzero(level > before):
        pairs.setdefault(int(action[row]), []).append((_six_digits(score[row]), round(float(tiou[row]), 4)))
    return {number: tuple(own) for number, own in pairs.items()}


@dataclass(frozen=True)
class VideoErrors:
    """Per video, each (videos,): missed and false as the head of this file defines them."""

    missed: np.ndarray
    false: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """0 (perfect) to 2 (nothing right)."""
        error: np.ndarray = self.missed + self.false
        return error


def video_errors(page_data: PageData) -> VideoErrors:
    """The error of each video at the first threshold."""
    matches, count = page_data.matches, len(page_data.matches.keys)
    best = [
        next((tiou for score, tiou in reversed(steps) if score >= page_data.threshold), 0.0)
        for steps in page_data.tiou_by_score
    ]
    true = np.bincount(matches.true.video, minlength=count)
    found = np.bincount(matches.true.video, weights=np.array(best, dtype=float), minlength=count)
    video, shown = matches.detected.video, page_data.shown
    weight = np.maximum(matches.detected.scores, 0.0) + 1e-12  # all scores 0: every detection counts alike
    mass = np.bincount(video[shown], weights=weight[shown], minlength=count)
    wrong = shown & ~matches.hit
    false = np.bincount(video[wrong], weights=weight[wrong], minlength=count) / np.maximum(mass, 1e-12)
    return VideoErrors(np.where(true > 0, 1 - found / np.maximum(true, 1), 0.0), false)


def order_of(page_data: PageData) -> list[int]:
    """Video numbers as the index lists them: by error, or by number shown and score without ground truth."""
    scores = [float(page_data.matches.detected.scores[rows[:1]].sum()) for rows in page_data.detections_of]
    shown = [int(page_data.shown[rows].sum()) for rows in page_data.detections_of]
    errors = video_errors(page_data).total if page_data.has_ground_truth else np.zeros(len(scores))
    return sorted(
        range(len(scores)), key=lambda i: (-errors[i], -shown[i], -scores[i], page_data.matches.keys[i])
    )


def length_of(page_data: PageData, video: int) -> float:
    """Seconds the time axis spans: the annotated duration, or the last segment's end; never 0."""
    ends = [
        page_data.matches.true.segments[page_data.actions_of[video], 1],
        page_data.matches.detected.segments[page_data.detections_of[video], 1],
    ]
    last = float(np.concatenate(ends).max(initial=0.0))
    return round(max(page_data.durations[video] or 0.0, last) or 1.0, 3)


def video_data(page_data: PageData, video: int) -> dict[str, Any]:
    """What the viewer's script reads for one video; classes by index in "classes", times in seconds.

    actions: [class, start, end, tiou_by_score]. detections, by falling score: [class, start, end, score,
    tIoU with the best true action, its index in actions or -1, 1 if right].
    """
    matches = page_data.matches
    actions, detected = page_data.actions_of[video], page_data.detections_of[video]
    used = np.unique(np.concatenate([matches.true.label[actions], matches.detected.label[detected]]))
    index = {int(label): number for number, label in enumerate(used)}
    first = int(actions[0]) if len(actions) else 0
    return {
        "name": matches.keys[video],
        "length": length_of(page_data, video),
        "classes": [matches.labels[int(label)] for label in used],
        "hasGroundTruth": page_data.has_ground_truth,
        "threshold": page_data.threshold,
        "topScore": _six_digits(matches.top_score),
        "actions": [
            [
                index[int(matches.true.label[row])],
                *_times(matches.true.segments[row]),
                page_data.tiou_by_score[row],
            ]
            for row in actions
        ],
        "detections": [
            [
                index[int(matches.detected.label[row])],
                *_times(matches.detected.segments[row]),
                _six_digits(matches.detected.scores[row]),
                round(float(page_data.best_tiou[row]), 4),
                int(page_data.best_action[row]) - first if page_data.best_action[row] >= 0 else -1,
                int(matches.hit[row]),
            ]
            for row in detected
        ],
    }


def index_row(page_data: PageData, video: int, errors: VideoErrors) -> list[Any]:
    """A video on the index: name, seconds, number of true actions and of detections shown, missed, false, top
    score, true actions as [start, end], shown detections as [start, end, 1 if right].

    Starts and ends are in thousandths of the length.
    """
    matches = page_data.matches
    rows = page_data.detections_of[video]
    shown = rows[page_data.shown[rows]]
    scale = INDEX_UNITS / length_of(page_data, video)
    top = float(matches.detected.scores[rows[:1]].sum())
    return [
        matches.keys[video],
        length_of(page_data, video),
        len(page_data.actions_of[video]),
        len(shown),
        round(float(errors.missed[video]), 4),
        round(float(errors.false[video]), 4),
        _six_digits(top),
        [_in_units(matches.true.segments[row], scale) for row in page_data.actions_of[video]],
        [[*_in_units(matches.detected.segments[row], scale), int(matches.hit[row])] for row in shown],
    ]


def _times(segment: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in segment]


def _in_units(segment: np.ndarray, scale: float) -> list[int]:
    return [int(round(float(value) * scale)) for value in segment]


def _six_digits(value: float) -> float:
    """Six significant digits: threshold and scores are rounded alike, so that nothing changes sides."""
    return float(f"{float(value):.6g}")


def _rounded_score(row: Mapping[str, Any]) -> dict[str, Any]:
    """A detection with the score that the pages show, as every comparison is with that."""
    return {**row, "score": _six_digits(row["score"])}
