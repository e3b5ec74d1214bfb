"""Timelines of detections against truth: a lane per class, time to the right, score upwards.

A detection is a hit when the protocol matches it with a true action at tIoU 0.5: in the order of score, each
true action once. Everything is drawn as SVG text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from train.matching import Rows, detection_rows, match_labels, truth_rows
from train.report.svg import Axis, image, rule, tag, time_axis, words

TIOU = 0.5
WIDTH, LANE, GAP, TOP, LEFT, RIGHT = 1100, 58, 12, 4, 160, 20
MINUTES_FROM = 180  # seconds; longer videos have minutes on their axis
MAX_LANES = 12  # of one video; a video with more classes shows those with the most true actions


@dataclass(frozen=True)
class Judged:
    """All true actions and detections, with a verdict per detection: hit (n,). Rows count keys and labels."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    true: Rows
    detected: Rows
    hit: np.ndarray

    @property
    def top_score(self) -> float:
        """The highest score of all, 1 where there is none."""
        return float(self.detected.scores.max(initial=0.0)) or 1.0


@dataclass(frozen=True)
class WorkingPoint:
    """The score above which detections count as an answer, where F1 over all videos is best."""

    score: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)


def judge(truth: Mapping[str, Any], detections: Mapping[str, Sequence[Mapping[str, Any]]]) -> Judged:
    """Match all detections of known videos and classes with the true actions at tIoU 0.5."""
    keys = tuple(truth)
    names = {action.label for video in truth.values() for action in video.actions}
    names |= {entry["label"] for entries in detections.values() for entry in entries}
    labels = tuple(sorted(names))
    index = {name: number for number, name in enumerate(labels)}
    true = truth_rows(truth, index, drop_duplicates=False)
    detected = detection_rows(detections, {key: number for number, key in enumerate(keys)}, index)
    hit = np.zeros(len(detected.scores), dtype=bool)
    order = np.lexsort((-detected.scores, detected.label))
    hit[order] = match_labels(detected.take(order), true, np.array([TIOU]), len(keys))[0] >= 0
    return Judged(keys, labels, true, detected, hit)


def working_point(judged: Judged) -> WorkingPoint:
    """Where F1 is best; a score above every detection if nothing is ever right."""
    order = np.argsort(-judged.detected.scores, kind="stable")
    hits = judged.hit[order].cumsum()
    if not len(hits) or not hits[-1]:
        return WorkingPoint(float("inf"), 0.0, 0.0)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(judged.true.label))
    best = int(f1.argmax())
    return WorkingPoint(
        float(judged.detected.scores[order[best]]),
        float(hits[best] / (best + 1)),
        float(hits[best] / len(judged.true.label)),
    )


def precision_recall(judged: Judged, *, count: int = 300) -> list[tuple[float, float]]:
    """About `count` points (recall, precision) in percent, all classes together, interpolated as AP does."""
    hits = judged.hit[np.argsort(-judged.detected.scores, kind="stable")].cumsum()
    if not len(hits):
        return []
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.unique(np.geomspace(1, len(hits), count).round().astype(int)) - 1
    recall = hits[places] / max(len(judged.true.label), 1)
    return list(zip((100 * recall).tolist(), (100 * precision[places]).tolist(), strict=True))


def video_scores(judged: Judged, point: WorkingPoint) -> np.ndarray:
    """F1 of each video at the working point; NaN for a video without true actions."""
    shown = (judged.detected.scores >= point.score) & (judged.detected.video >= 0)
    count = len(judged.keys)
    hits = np.bincount(judged.detected.video[shown & judged.hit], minlength=count)
    answers = np.bincount(judged.detected.video[shown], minlength=count)
    true = np.bincount(judged.true.video, minlength=count)
    return np.where(true > 0, 2 * hits / np.maximum(answers + true, 1), np.nan)


def choose_videos(scores: np.ndarray, count: int) -> list[int]:
    """Video numbers from the best to the worst in even steps, so that the choice flatters nobody."""
    order = [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
    if len(order) <= count:
        return order
    places = np.linspace(0, len(order) - 1, max(count, 0)).round().astype(int)
    return [order[place] for place in places]


def lanes_of(judged: Judged, video: int, point: WorkingPoint) -> list[int]:
    """The classes of a video that get a lane: those with true actions first, then those answered."""
    true = judged.true.label[judged.true.video == video]
    own = judged.detected.video == video
    answered = judged.detected.label[own & (judged.detected.scores >= point.score)]
    labels = [int(label) for label in np.unique(true)]
    labels += [int(label) for label in np.unique(answered) if label not in true]
    return labels[:MAX_LANES]


def clock(seconds: float, longest: float) -> str:
    """A time on the axis: seconds, or minutes and seconds in a long video."""
    return f"{seconds:g} s" if longest <= MINUTES_FROM else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def clock_axis(longest: float) -> Axis:
    """Time from 0 to the video's end; marks at round seconds or, where `clock` counts minutes, at those."""
    axis = time_axis(0.0, longest, LEFT, WIDTH - RIGHT, pieces=10)
    if longest <= MINUTES_FROM:
        return axis
    step = next((s for s in (30, 60, 120, 300, 600, 1200) if longest / s <= 10), 3600)
    return replace(axis, ticks=tuple(float(t) for t in range(0, int(longest) + 1, step)))


def timeline(judged: Judged, video: int, duration: float | None, point: WorkingPoint) -> str:
    """One video as SVG: a lane per class, bands for true actions, bars as high as their score."""
    own_true = np.flatnonzero(judged.true.video == video)
    own_detected = np.flatnonzero(judged.detected.video == video)
    ends = [judged.true.segments[own_true, 1], judged.detected.segments[own_detected, 1]]
    longest = duration or max(np.concatenate(ends).tolist(), default=1.0)
    axis = clock_axis(max(longest, 1e-3))
    labels = lanes_of(judged, video, point)
    bottom = TOP + len(labels) * (LANE + GAP)
    parts = []
    for place, label in enumerate(labels):
        parts += draw_lane(
            judged,
            own_true[judged.true.label[own_true] == label],
            own_detected[judged.detected.label[own_detected] == label],
            Lane(judged.labels[label], axis, TOP + place * (LANE + GAP), judged.top_score, point.score),
        )
    for tick in axis.ticks:
        parts.append(rule(axis(tick), TOP, axis(tick), bottom - GAP + 5, "mark"))
        parts.append(words(axis(tick), bottom + 9, clock(tick, longest), "tick", anchor="middle"))
    title = f"{judged.keys[video]}: detections against truth"
    return image(parts, title, width=WIDTH, height=bottom + 18)


@dataclass(frozen=True)
class Lane:
    """Where one class of one video is drawn."""

    name: str
    axis: Axis
    top: float
    top_score: float  # the score that reaches the lane's top
    least: float  # the working point's score

    def height_of(self, score: float) -> float:
        """The pixel of a score; 0 is the floor."""
        part = min(max(score / self.top_score, 0.0), 1.0)
        return self.top + LANE - 4 - part * (LANE - 15)


def draw_lane(judged: Judged, true: np.ndarray, detected: np.ndarray, lane: Lane) -> list[str]:
    """One class: its name, the bands of truth, the line of the working point, the bars of detections."""
    shown = lane.name if len(lane.name) <= 20 else lane.name[:18] + "..."
    size = {"x": LEFT, "y": lane.top, "width": WIDTH - LEFT - RIGHT, "height": LANE, "rx": 3}
    parts = [tag("rect", class_="lane", **size)]
    parts.append(words(LEFT - 12, lane.top + LANE / 2 + 4, shown, "name", anchor="end", title=lane.name))
    for row in true:
        parts.append(draw_truth(judged.true.segments[row], lane))
    if lane.least <= lane.top_score:
        height = lane.height_of(lane.least)
        parts.append(rule(LEFT, height, WIDTH - RIGHT, height, "cut"))
    by_score = np.argsort(judged.detected.scores[detected], kind="stable")  # the best on top
    return parts + [draw_detection(judged, int(row), lane) for row in detected[by_score]]


def draw_truth(segment: np.ndarray, lane: Lane) -> str:
    """A true action: a band over the whole lane with a dark cap."""
    left = lane.axis(max(segment[0], lane.axis.low))
    width = max(lane.axis(min(segment[1], lane.axis.high)) - left, 1.5)
    place = {"x": left, "y": lane.top, "width": width}
    inside = tag("rect", class_="truth", height=LANE, **place) + tag("rect", class_="cap", height=5, **place)
    return tag("g", inside, title=f"true {lane.name}, {segment[0]:.2f} to {segment[1]:.2f} s")


def draw_detection(judged: Judged, row: int, lane: Lane) -> str:
    """A detection: blue if it is right, vermilion and hollow if not, pale below the working point."""
    start, end = judged.detected.segments[row]
    score = float(judged.detected.scores[row])
    left = lane.axis(max(start, lane.axis.low))
    width = max(lane.axis(min(end, lane.axis.high)) - left, 1.5)
    kind = ("hit" if judged.hit[row] else "wrong") + ("" if score >= lane.least else " weak")
    verdict = "right" if judged.hit[row] else "wrong, or a repeat"
    title = f"{lane.name}, {start:.2f} to {end:.2f} s, score {score:.3f}: {verdict}"
    height = 5.0 if score >= lane.least else 3.0
    place = {"x": left, "y": lane.height_of(score) - height / 2, "width": width, "height": height, "rx": 1.5}
    return tag("rect", title=title, class_=kind, **place)
