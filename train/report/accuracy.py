"""The report's section on accuracy: mAP by tIoU, precision over recall, AP by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.annotations import Video
from pipeline.text import counted
from train.evaluation.operating_point import TIOU, MatchedDetections, OperatingPoint, precision_recall
from train.report.charts import Line, column_chart, line_chart
from train.report.page import render
from train.report.svg import BLUE, VERMILION

MANY_CLASSES = 60  # of more classes, the best and the worst are shown and the rest folded away
LONGEST_LABEL = 30  # characters; longer names of classes are cut short by the browser


@dataclass(frozen=True)
class ClassRow:
    """AP of one class in percent: mean over all tIoU and at the lowest; count: its true actions."""

    name: str
    mean: float
    loose: float
    count: int


def accuracy_section(
    metrics: Mapping[str, Any],
    ground_truth: Mapping[str, Video],
    matches: MatchedDetections | None,
    point: OperatingPoint | None,
) -> Markup:
    """matches, point: None for a run without detections, whose section has no precision over recall."""
    rows = class_rows(metrics, ground_truth)
    best, middle, worst = folded(rows)
    values = {
        "counts": counts_of(metrics),
        "protocol": metrics["protocol"],
        "map": map_chart(metrics),
        "precision": None,
        "matching_tiou": f"{TIOU:g}",
        "lowest_tiou": f"{metrics['tiou'][0]:g}",
        "label_width": min(max((len(row.name) for row in rows), default=0), LONGEST_LABEL) + 1,
        "best": best,
        "middle": middle,
        "worst": worst,
    }
    if matches is not None and point is not None and point.recall:
        values["precision"] = precision_chart(matches, point)
    return render("accuracy.html.j2", values)


def counts_of(metrics: Mapping[str, Any]) -> list[str]:
    """What was evaluated: videos, true actions, classes, detections."""
    return [
        counted(metrics["num_videos"], "video"),
        counted(metrics["num_truth"], "true action"),
        counted(len(metrics["per_class"]), "class", "classes"),
        counted(metrics["num_detections"], "detection"),
    ]


def map_chart(metrics: Mapping[str, Any]) -> Markup:
    """A column for each tIoU threshold, in percent."""
    columns = [(f"{t:g}", 100 * value) for t, value in zip(metrics["tiou"], metrics["mAP"], strict=True)]
    return column_chart(columns, x_label="tIoU threshold", title="mAP by tIoU, percent", unit=" %")


def precision_chart(matches: MatchedDetections, point: OperatingPoint) -> Markup:
    """Precision over recall of all classes together, both in percent, with a dot at the best F1."""
    best = (100 * point.recall, 100 * point.precision)
    lines = [
        Line("all classes", precision_recall(matches), BLUE, width=2.4),
        Line("best F1", [best], VERMILION, width=3.5),
    ]
    title = f"Precision over recall at tIoU {TIOU:g}"
    return line_chart(lines, x_label="recall, percent", title=title, unit=" %", x_range=(0, 100), named=False)


def class_rows(metrics: Mapping[str, Any], ground_truth: Mapping[str, Video]) -> list[ClassRow]:
    """AP of every class, the best first."""
    counts = Counter(action.label for video in ground_truth.values() for action in video.actions)
    rows = [
        ClassRow(name, 100 * (sum(ap) / len(ap)), 100 * ap[0], counts[name])
        for name, ap in metrics["per_class"].items()
    ]
    return sorted(rows, key=lambda row: -row.mean)


def folded(rows: Sequence[ClassRow]) -> tuple[Sequence[ClassRow], Sequence[ClassRow], Sequence[ClassRow]]:
    """The best, those between, the worst; of few classes all are among the best."""
    if len(rows) <= MANY_CLASSES:
        return rows, (), ()
    shown = MANY_CLASSES // 3
    return rows[:shown], rows[shown:-shown], rows[-shown:]
