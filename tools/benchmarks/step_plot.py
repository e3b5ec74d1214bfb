"""The plot of bench-step: for each mode the time and the peak memory of a step, as multiples of plain's."""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmarks.step import StepRow
from train.report.svg import BLUE, image_file, rule, tag, text, tick_text, value_axis

WIDTH, ROW, TOP, LEFT, RIGHT, BOTTOM = 720, 26, 34, 300, 40, 30  # units of the image
ORANGE = "#c2570c"


def plot(rows: Sequence[StepRow]) -> str:
    """The image as SVG, complete in itself; rows without a figure are left out."""
    shown = [(row, row.times_plain, row.peak_of_plain) for row in rows]
    known = [(row, time, peak) for row, time, peak in shown if time is not None and peak is not None]
    bottom = TOP + ROW * max(1, len(known))
    ratios = [1.0, *(value for _, time, peak in known for value in (time, peak))]
    axis = value_axis(ratios, LEFT, WIDTH - RIGHT)
    title = "a step against plain: time (blue dot), peak memory (orange square)"
    parts = [text(16, 18, title, "title")]
    for tick in axis.ticks:
        parts.append(rule(axis(tick), TOP, axis(tick), bottom, "grid"))
        parts.append(text(axis(tick), bottom + 18, tick_text(tick), "tick", anchor="middle"))
    parts.append(rule(axis(1.0), TOP, axis(1.0), bottom, "axis"))
    for number, (row, time, peak) in enumerate(known):
        middle = TOP + ROW * (number + 0.5)
        parts.append(text(LEFT - 8, middle + 4, _name(row), "name", anchor="end"))
        side = 8
        corner = {"x": axis(peak) - side / 2, "y": middle - side / 2}
        parts.append(tag("rect", title=f"memory {peak:g}", width=side, height=side, fill=ORANGE, **corner))
        parts.append(tag("circle", title=f"time {time:g}", cx=axis(time), cy=middle, r=4, fill=BLUE))
    return image_file(parts, title, width=WIDTH, height=bottom + BOTTOM)


def _name(row: StepRow) -> str:
    moved = "" if row.offload == "none" else f", offload {row.offload}"
    return f"{row.mode} ({row.device}, {row.dtype}, ZeRO {row.zero}{moved})"
