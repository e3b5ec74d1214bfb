"""The report's section on learning: loss over optimizer steps, mAP over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from train.report.charts import Line, line_chart, smoothed
from train.report.page import render
from train.report.run_files import RunFiles
from train.report.svg import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

PART_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY)
PART_DASHES = ("7 3", "2 3", "9 3 2 3", "4 2")
TIOU_STYLES = ((SKY, "7 3"), (GREEN, "2 3"), (PURPLE, "9 3 2 3"))


def learning_section(run: RunFiles) -> Markup:
    """The curves. Without a logged evaluation, the final metrics stand at the last epoch."""
    steps, evals = run.events_of("train"), run.events_of("eval")
    if not evals and run.metrics:
        last = max((event.get("epoch", 0) for event in steps), default=0)
        evals = [{"epoch": last, "metrics": run.metrics}]
    loss, loss_note = loss_chart(steps) if steps else (None, "")
    values = {
        "loss": loss,
        "loss_note": loss_note,
        "map": map_chart(evals) if evals else None,
        "missing": [kind for kind, events in (("step", steps), ("validation", evals)) if not events],
    }
    return render("learning.html.j2", values)


def loss_chart(steps: Sequence[Mapping[str, Any]]) -> tuple[Markup, str]:
    """Total loss, bold, over its parts, and a note about averages and scale.

    The scale is logarithmic where a linear axis would hide the smaller parts.
    """
    total = [(event["step"], _float(event.get("loss"))) for event in steps]
    window = max(1, len(total) // 25)
    lines = _loss_parts(steps, window)
    if window > 1:
        lines.append(Line("each step", smoothed(total, 1), BLUE, width=1.2, faint=True))
    lines.append(Line("total", smoothed(total, window), BLUE, width=2.8))
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    log = bool(values) and 0 < 50 * min(values) < max(values)
    notes = [f"Means of {window} logged values; pale: each."] if window > 1 else []
    notes += ["Logarithmic scale."] if log else []
    chart = line_chart(lines, x_label="optimizer step", title="Loss over optimizer steps", log=log)
    return chart, " ".join(notes)


def _loss_parts(steps: Sequence[Mapping[str, Any]], window: int) -> list[Line]:
    """A line for each part of the loss, by name."""
    lines = []
    for i, name in enumerate(sorted({name for event in steps for name in event.get("parts", {})})):
        points = [(event["step"], _float(event.get("parts", {}).get(name))) for event in steps]
        colour, dash = PART_COLOURS[i % len(PART_COLOURS)], PART_DASHES[i % len(PART_DASHES)]
        lines.append(Line(name, smoothed(points, window), colour, dash, 1.6))
    return lines


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def map_chart(evals: Sequence[Mapping[str, Any]]) -> Markup:
    """Average mAP and that of a few thresholds over epochs, in percent."""
    tiou = evals[-1]["metrics"]["tiou"] if evals else []
    shown = sorted({0, len(tiou) // 2, len(tiou) - 1}) if len(tiou) > 1 else []
    lines = [
        Line(f"tIoU {tiou[i]:g}", _percents(evals, i), colour, dash, 1.6, dots=len(evals) < 30)
        for i, (colour, dash) in zip(shown, TIOU_STYLES, strict=False)
    ]
    average = [(e["epoch"], 100 * e["metrics"]["average_mAP"]) for e in evals]
    lines.append(Line("average", average, BLUE, width=2.8, dots=len(evals) < 60))
    return line_chart(lines, x_label="epoch", title="mAP over epochs, percent", unit=" %")


def _percents(evals: Sequence[Mapping[str, Any]], index: int) -> list[tuple[float, float]]:
    """(epoch, mAP) at one threshold, of the evaluations that have it."""
    having = [e for e in evals if len(e["metrics"]["mAP"]) > index]
    return [(e["epoch"], 100 * e["metrics"]["mAP"][index]) for e in having]
