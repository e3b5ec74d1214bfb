"""The report's timelines of detections against ground truth: a lane per class, the best detections on top.

A detection is a hit when the protocol matches it with a true action at tIoU 0.5: in the order of score, each
true action once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.annotations import Video
from pipeline.text import counted, duration_text, short
from train.evaluation.operating_point import TIOU, MatchedDetections, OperatingPoint, video_scores
from train.report.page import render
from train.report.svg import Axis, image, range_axis, rule, tag, text

WIDTH, SIDE = 1100, 28  # the margins hold half of the outermost times
NAME, CAP, ROW = 26, 5, 9  # heights: of a lane's name, a true action's cap, a row of detections
LONGEST_NAME = 80  # characters
MINUTES_FROM = 180  # seconds; longer videos have minutes on their axis
STEPS = (30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)  # between its marks, seconds
MAX_LANES = 12  # of one video; a video with more classes shows those with the most true actions
FEW = 10  # so many detections of a video are drawn, and 2 more for each true action


def timelines_section(
    matches: MatchedDetections, point: OperatingPoint, ground_truth: Mapping[str, Video], *, count: int
) -> Markup:
    """A legend and up to `count` videos; says by which rule they were chosen."""
    total = sum(bool(video.actions) for video in ground_truth.values())
    few = f"{count} of {counted(total, 'video')}, from the best to the worst in even steps."
    scores = video_scores(matches, point)
    videos = []
    for video in choose_videos(scores, count):
        key = matches.keys[video]
        duration = ground_truth[key].duration
        videos.append(
            {
                "key": key,
                "summary": video_summary(matches, video, duration, point),
                "f1": f"{scores[video]:.2f}",
                "timeline": timeline(matches, video, duration, point),
            }
        )
    values = {
        "chosen": few if count < total else f"{counted(total, 'video')} with true actions, the best first.",
        "matching_tiou": f"{TIOU:g}",
        "cut": f"{point.score:.3g}" if point.recall else None,
        "videos": videos,
    }
    return render("timelines.html.j2", values)


def choose_videos(scores: np.ndarray, count: int) -> list[int]:
    """Video numbers from the best to the worst in even steps; videos without true actions have no score."""
    order = [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
    if len(order) <= count:
        return order
    positions = np.linspace(0, len(order) - 1, max(count, 0)).round().astype(int)
    return [order[position] for position in positions]


def lanes_of(matches: MatchedDetections, video: int, point: OperatingPoint) -> list[tuple[int, np.ndarray]]:
    """The lanes of a video: (class, its detections that are drawn, the best first).

    Drawn are the right answers and the best of the other detections. Classes with true actions come first.
    """
    gt = matches.true.label[matches.true.video == video]
    own = np.flatnonzero(matches.detected.video == video)
    scores = matches.detected.scores[own]
    right = matches.hit[own] & (scores >= point.cut)
    chosen = own[np.lexsort((-scores, ~right))[: FEW + 2 * len(gt)]]
    best = chosen[np.argsort(-matches.detected.scores[chosen], kind="stable")]
    classes = matches.detected.label[best]
    labels = sorted(label for label, _ in Counter(gt.tolist()).most_common(MAX_LANES))
    reported = dict.fromkeys(classes[matches.detected.scores[best] >= point.cut].tolist())
    labels += [label for label in reported if label not in labels]
    return [(label, best[classes == label]) for label in labels[:MAX_LANES]]


def video_summary(
    matches: MatchedDetections, video: int, duration: float | None, point: OperatingPoint
) -> str:
    """What a video holds, and how many of its detections are drawn."""
    lanes = lanes_of(matches, video, point)
    gt = matches.true.label[matches.true.video == video]
    detections, drawn = int((matches.detected.video == video).sum()), sum(len(rows) for _, rows in lanes)
    classes = len(np.unique(gt))
    parts = [counted(len(gt), "true action")] + ([duration_text(duration)] if duration else [])
    parts.append(
        counted(detections, "detection")
        if drawn == detections
        else f"{drawn:,} of {counted(detections, 'detection')} shown"
    )
    if classes > MAX_LANES:
        parts.append(f"{MAX_LANES} of {classes} classes shown")
    return ", ".join(parts)


def clock(seconds: float, longest: float) -> str:
    """A time on the axis: 30 s, in a longer video 3:30, in one of over an hour 1:03:30."""
    if longest <= MINUTES_FROM:
        return f"{seconds:g} s"
    minutes, rest = divmod(int(seconds), 60)
    hours = f"{minutes // 60}:{minutes % 60:02d}" if longest > 3600 else f"{minutes}"
    return f"{hours}:{rest:02d}"


def clock_axis(longest: float) -> Axis:
    """Time from 0 to the video's end; marks at round seconds or, where `clock` counts minutes, at those."""
    axis = range_axis(0.0, longest, SIDE, WIDTH - SIDE, intervals=10)
    if longest <= MINUTES_FROM:
        return axis
    step = next((s for s in STEPS if longest / s <= 10), STEPS[-1])
    return replace(axis, ticks=tuple(float(t) for t in range(0, int(longest) + 1, step)))


def timeline(matches: MatchedDetections, video: int, duration: float | None, point: OperatingPoint) -> Markup:
    """One video as SVG: a lane per class, bands for true actions, under their caps the detections."""
    of_video = matches.true.video == video
    ends = [matches.true.segments[of_video, 1], matches.detected.segments[matches.detected.video == video, 1]]
    longest = max(duration or max(np.concatenate(ends).tolist(), default=1.0), 1e-3)
    axis = clock_axis(longest)
    parts, top = [], 0.0
    for label, rows in lanes_of(matches, video, point):
        gt = matches.true.segments[of_video & (matches.true.label == label)]
        name = matches.labels[label]
        shown = short(name, LONGEST_NAME, quoted=False)
        parts.append(text(SIDE, top + 18, shown, "name", title=name))
        drawn, top = draw_lane(matches, gt, rows, axis, top=top + NAME, cut=point.cut)
        parts += drawn
    for tick in axis.ticks:
        parts.append(rule(axis(tick), NAME, axis(tick), top + 5, "mark"))
        parts.append(text(axis(tick), top + 18, clock(tick, longest), "tick", anchor="middle"))
    title = f"{matches.keys[video]}: detections against truth"
    return image(parts, title, width=WIDTH, height=top + 24)


def extent(segment: np.ndarray, axis: Axis) -> tuple[float, float]:
    """Left end and width in pixels, inside the axis and wide enough to see."""
    left = axis(min(max(segment[0], axis.low), axis.high))
    return left, max(axis(min(segment[1], axis.high)) - left, 1.5)


def rows_of(extents: Sequence[tuple[float, float]]) -> list[int]:
    """The row of each extent: the highest where it covers none of those before it."""
    taken: list[list[tuple[float, float]]] = []  # (left, right) of what lies in each row
    chosen = []
    for left, width in extents:
        free = [all(left >= b + 2 or left + width + 2 <= a for a, b in row) for row in taken]
        row = free.index(True) if True in free else len(taken)
        if row == len(taken):
            taken.append([])
        taken[row].append((left, left + width))
        chosen.append(row)
    return chosen


def draw_lane(
    matches: MatchedDetections, gt: np.ndarray, detected: np.ndarray, axis: Axis, *, top: float, cut: float
) -> tuple[list[Markup], float]:
    """One class: bands for true actions, detections in rows that hide nothing; also where the lane ends.

    gt: (m, 2) segments in seconds; detected: rows of `matches.detected`, the best first.
    """
    extents = [extent(matches.detected.segments[row], axis) for row in detected]
    rows = rows_of(extents)
    height = CAP + 4 + ROW * (max(rows, default=0) + 1)
    size: dict[str, Any] = {"x": SIDE, "y": top, "width": WIDTH - 2 * SIDE, "height": height, "rx": 3}
    parts = [tag("rect", class_="lane", **size)]
    parts += [draw_action(segment, axis, top, height) for segment in gt]
    for detection, own, row in zip(detected, extents, rows, strict=True):
        middle = top + CAP + 2 + ROW * (row + 0.5)
        parts.append(draw_detection(matches, int(detection), own, middle=middle, cut=cut))
    return parts, top + height


def draw_action(segment: np.ndarray, axis: Axis, top: float, height: float) -> Markup:
    """A true action: a band over the whole lane with a dark cap."""
    left, width = extent(segment, axis)
    box: dict[str, Any] = {"x": left, "y": top, "width": width}
    inside = tag("rect", class_="action", height=height, **box) + tag("rect", class_="cap", height=CAP, **box)
    return tag("g", inside, title=f"true action, {segment[0]:.2f} to {segment[1]:.2f} s")


def draw_detection(
    matches: MatchedDetections, row: int, own: tuple[float, float], *, middle: float, cut: float
) -> Markup:
    """A detection: blue if it is right, vermilion and hollow if not, pale and thin below the cut."""
    start, end = matches.detected.segments[row]
    score = float(matches.detected.scores[row])
    kind = ("hit" if matches.hit[row] else "wrong") + ("" if score >= cut else " weak")
    meaning = "right" if matches.hit[row] else "wrong, or a repeat"
    name = matches.labels[matches.detected.label[row]]
    title = f"{name}, {start:.2f} to {end:.2f} s, score {score:.3g}: {meaning}"
    height = 6.0 if score >= cut else 3.0
    left, width = own
    box = {"x": left, "y": middle - height / 2, "width": width, "height": height, "rx": 1.5}
    return tag("rect", title=title, class_=kind, **box)
