"""The plot of a study: average mAP of each combination, a dot for each seed and a mark at their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.text import short
from tools.ablation.grid import PlannedRun
from tools.ablation.runs import RunResult
from tools.ablation.table import Row
from train.report.svg import BLUE, image_file, rule, tag, text, tick_text, value_axis

WIDTH, ROW, TOP, BOTTOM, RIGHT = 720, 30, 34, 44, 60  # units of the image
LETTER = 6.6  # width of a letter of a name, about
LONGEST = 60  # letters of a name that are shown
STYLE = "\n.mean{stroke:#222;stroke-width:2}"


def plot(rows: Sequence[Row], runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> str:
    """The image as SVG, complete in itself."""
    names = [short(row["variant"], LONGEST, quoted=False) for row in rows]
    left = 16 + LETTER * max(map(len, names))
    values = {row["variant"]: _percents(row["variant"], runs, results) for row in rows}
    bottom = TOP + ROW * len(rows)
    axis = value_axis([0.0, *sum(values.values(), [])], left, WIDTH - RIGHT, min_high=1.0)
    parts = [text(left, 18, "average mAP, %: each seed, and their mean", "title")]
    for tick in axis.ticks:
        parts.append(rule(axis(tick), TOP, axis(tick), bottom, "grid"))
        parts.append(text(axis(tick), bottom + 18, tick_text(tick), "tick", anchor="middle"))
    parts.append(rule(left, TOP, left, bottom, "axis"))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        middle = TOP + ROW * (number + 0.5)
        parts.append(text(left - 8, middle + 4, name, "name", anchor="end", title=row["variant"]))
        for value in values[row["variant"]]:
            parts.append(tag("circle", cx=axis(value), cy=middle, r=4, fill=BLUE, opacity=0.6))
        if row["average_mAP_mean"] is not None:
            mean = 100 * row["average_mAP_mean"]
            parts.append(rule(axis(mean), middle - 10, axis(mean), middle + 10, "mean"))
            parts.append(text(WIDTH - RIGHT + 8, middle + 4, f"{mean:.1f}", "value"))
        else:
            parts.append(text(left + 8, middle + 4, "no complete run", "value"))
    title = "average mAP of each combination of settings"
    return image_file(parts, title, width=WIDTH, height=bottom + BOTTOM, style=STYLE)


def _percents(variant: str, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> list[float]:
    ended = (results.get(run.name) for run in runs if run.variant == variant)
    return [100 * result.metrics["average_mAP"] for result in ended if result and result.metrics]
