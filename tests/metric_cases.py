"""Random ground truth and detections with frequent ties, duplicates and empty videos, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.annotations import Action, Video

TIOU = (0.1, 0.25, 0.5, 0.75, 1.0)


def found(start: float, end: float, label: str, score: float) -> dict:
    return {"segment": [start, end], "label": label, "score": score}


def video(key: str, *actions: tuple[float, float, str], duration: float | None = 20.0) -> Video:
    return Video(key, "validation", duration, tuple(Action(*action) for action in actions))


def random_case(seed: int, *, videos: int = 6, classes: int = 3, most: int = 25) -> tuple[dict, dict]:
    """Videos on a coarse grid: equal scores, equal tIoUs, repeated detections and true actions, classes
    without truth, videos without truth, without detections, without an entry, and detected videos nobody
    knows."""
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    for number in range(videos):
        key = f"v{number}"
        starts = rng.integers(0, 12, rng.integers(0, 6))
        actions = [(float(s), float(s + rng.integers(1, 6)), f"c{rng.integers(classes)}") for s in starts]
        actions += actions[: rng.integers(0, 2)]
        truth[key] = video(key, *actions, duration=20.0 if rng.random() < 0.9 else None)
        if rng.random() < 0.85:
            detections[key] = random_detections(rng, classes, most)
    if rng.random() < 0.3:
        detections["stranger"] = random_detections(rng, classes, most)
    if not any(item.actions for item in truth.values()):
        truth["v0"] = video("v0", (2.0, 5.0, "c0"))
    return truth, detections


def random_detections(rng: np.random.Generator, classes: int, most: int) -> list[dict]:
    entries = []
    for _ in range(rng.integers(0, most)):
        start = float(rng.integers(0, 14))
        label = f"c{rng.integers(classes + 1)}"  # the last class is often without truth
        entries.append(found(start, start + float(rng.integers(1, 6)), label, float(rng.integers(1, 9)) / 8))
    return entries + entries[: rng.integers(0, 3)]


SEEDS = st.integers(0, 10**6)


def tiou(a: tuple[float, float], b: tuple[float, float]) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inside
    return inside / union if union > 0 else 0.0


def area_under_interpolated_curve(precision: list[float], recall: list[float]) -> float:
    """Sum of recall steps, each times the best precision reached at that recall or a higher one."""
    area, before = 0.0, 0.0
    for i, value in enumerate(recall):
        if value > before:
            area += (value - before) * max(precision[i:])
            before = value
    return area
