"""The report's charts: loss over steps, mAP over epochs and thresholds, precision over recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from train.report.page import card
from train.report.svg import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Axis,
    image,
    range_axis,
    rule,
    tag,
    text,
    tick_text,
    value_axis,
    value_text,
)

WIDTH, HEIGHT = 480, 270
LEFT, NAMES, RIGHT, TOP, BOTTOM = (
    50,
    132,
    14,
    14,
    44,
)  # NAMES: the right margin where it holds the lines' names
LABEL_GAP = 15  # between the names at the lines' ends, pixels
POINTS = 300  # of a loss's line; of more, every so many-th is drawn
MIN_PERCENT_HIGH = 1.0  # where an axis of percents ends at the earliest


@dataclass(frozen=True)
class Line:
    """One named line: points (x, y) by rising x. Dashes tell lines apart where colours cannot."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    dash: str = ""
    width: float = 2.0
    dots: bool = False
    faint: bool = False  # drawn behind the others, without a name


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Running mean over the last `window` points, fewer at the beginning; of many points, at POINTS."""
    means = []
    step = max(1, math.ceil(len(points) / POINTS))
    for i in range((len(points) - 1) % step, len(points), step):  # the last is always there
        recent = [value for _, value in points[max(0, i + 1 - window) : i + 1]]
        means.append((points[i][0], sum(recent) / len(recent)))
    return means


def spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Positions near the wanted ones, LABEL_GAP apart, within [low, high] as far as they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    limit = low - LABEL_GAP
    for i in order:
        placed[i] = limit = max(wanted[i], limit + LABEL_GAP)
    limit = high + LABEL_GAP
    for i in reversed(order):
        placed[i] = limit = min(placed[i], limit - LABEL_GAP)
    return placed


def grid(x: Axis, y: Axis, x_label: str, unit: str) -> list[str]:
    """Horizontal lines, the marks of both axes and the x axis's name."""
    parts = []
    for tick in y.ticks:
        parts.append(rule(x.start, y(tick), x.end, y(tick), "grid"))
        parts.append(text(x.start - 8, y(tick) + 4, tick_text(tick) + unit, "tick", anchor="end"))
    for tick in x.ticks:
        parts.append(text(x(tick), y.start + 18, tick_text(tick), "tick", anchor="middle"))
    parts.append(rule(x.start, y.start, x.end, y.start, "axis"))
    parts.append(text((x.start + x.end) / 2, HEIGHT - 5, x_label, "tick", anchor="middle"))
    return parts


def draw_line(line: Line, x: Axis, y: Axis, unit: str) -> str:
    """The line with its dots; one dot where there is one point only."""
    style: dict[str, Any] = {"stroke": line.colour, "stroke_width": line.width, "stroke_dasharray": line.dash}
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    parts = [tag("polyline", points=path, fill="none", opacity=0.28 if line.faint else None, **style)]
    if line.dots or len(line.points) == 1:
        for a, b in line.points:
            title = f"{line.name}: {tick_text(b)}{unit} at {tick_text(a)}"
            radius = line.width + 1.5
            parts.append(tag("circle", title=title, cx=x(a), cy=y(b), r=radius, fill=line.colour))
    return "".join(parts)


def name_lines(lines: Sequence[Line], y: Axis) -> list[str]:
    """Each line's name beside its last point, pushed apart where they would overlap."""
    left = WIDTH - NAMES + 6.0
    parts = []
    positions = spread([y(line.points[-1][1]) for line in lines], TOP + 4, HEIGHT - BOTTOM)
    for line, position in zip(lines, positions, strict=True):
        style: dict[str, Any] = {
            "stroke": line.colour,
            "stroke_width": line.width,
            "stroke_dasharray": line.dash,
        }
        parts.append(tag("line", x1=left, x2=left + 20, y1=position, y2=position, **style))
        parts.append(text(left + 25, position + 4, line.name, "name"))
    return parts


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    title: str,
    unit: str = "",
    log: bool = False,
    x_range: tuple[float, float] | None = None,
    named: bool = True,
) -> str:
    """All lines over one x axis, `named` at their ends. Points that are not finite are left out.

    log: a logarithmic y axis; all values have to be above 0. x_range: ends of the x axis; without it, the
    data's. title: what a screen reader says. unit: of y; with one, y is in percent.
    """
    lines = [replace(line, points=[p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return '<p class="note">No finite value was logged.</p>'
    xs = [a for line in lines for a, _ in line.points]
    ys = [b for line in lines for _, b in line.points]
    low, high = x_range or (min(xs), max(xs))
    x = range_axis(low, high, LEFT, WIDTH - (NAMES if named else RIGHT), whole=True)
    y = value_axis(ys, HEIGHT - BOTTOM, TOP, min_high=MIN_PERCENT_HIGH if unit else 0.0, log=log)
    parts = grid(x, y, x_label, unit)
    parts += [draw_line(line, x, y, unit) for line in sorted(lines, key=lambda line: not line.faint)]
    parts += name_lines([line for line in lines if named and not line.faint], y)
    return image(parts, title, width=WIDTH, height=HEIGHT)


def column_chart(values: Sequence[tuple[str, float]], *, x_label: str, title: str, unit: str = "") -> str:
    """A column per (name, percent), its value above it; both texts are left out where there is no room."""
    y = value_axis([value for _, value in values], HEIGHT - BOTTOM, TOP + 14, min_high=MIN_PERCENT_HIGH)
    x = Axis(0, len(values), (), LEFT, WIDTH - RIGHT)
    parts = grid(x, y, x_label, unit)
    slot = (x.end - x.start) / len(values)
    width = min(46.0, 0.68 * slot)
    for i, (name, value) in enumerate(values):
        middle, top = x(i + 0.5), y(value)
        box = {"x": middle - width / 2, "y": top, "width": width, "height": y.start - top, "rx": 2}
        parts.append(tag("rect", title=f"{name}: {value:.2f}{unit}", class_="column", **box))
        if slot >= 28:
            parts.append(text(middle, top - 5, value_text(value), "value", anchor="middle"))
            parts.append(text(middle, y.start + 18, name, "tick", anchor="middle"))
    listing = ", ".join(f"{name}: {value_text(value)}{unit}" for name, value in values)
    return image(parts, f"{title}: {listing}", width=WIDTH, height=HEIGHT)


def loss_card(steps: Sequence[Mapping[str, Any]]) -> str:
    """Total loss, bold, over its parts; logarithmic where a linear axis would hide the smaller ones."""
    names = sorted({name for event in steps for name in event.get("parts", {})})
    total = [(event["step"], _float(event.get("loss"))) for event in steps]
    window = max(1, len(total) // 25)
    colours, dashes = (VERMILION, GREEN, PURPLE, ORANGE, SKY), ("7 3", "2 3", "9 3 2 3", "4 2")
    lines = []
    for i, name in enumerate(names):
        points = [(event["step"], _float(event.get("parts", {}).get(name))) for event in steps]
        colour, dash = colours[i % len(colours)], dashes[i % len(dashes)]
        lines.append(Line(name, smoothed(points, window), colour, dash, 1.6))
    if window > 1:
        lines.append(Line("each step", smoothed(total, 1), BLUE, width=1.2, faint=True))
    lines.append(Line("total", smoothed(total, window), BLUE, width=2.8))
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    log = bool(values) and 0 < 50 * min(values) < max(values)
    notes = [f"Means of {window} logged values; pale: each."] if window > 1 else []
    notes += ["Logarithmic scale."] if log else []
    chart = line_chart(lines, x_label="optimizer step", title="Loss over optimizer steps", log=log)
    return card("Loss", chart, " ".join(notes))


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def map_chart(evals: Sequence[Mapping[str, Any]]) -> str:
    """Average mAP and that of a few thresholds over epochs, in percent."""
    tiou = evals[-1]["metrics"]["tiou"] if evals else []
    shown = sorted({0, len(tiou) // 2, len(tiou) - 1}) if len(tiou) > 1 else []
    styles = [(SKY, "7 3"), (GREEN, "2 3"), (PURPLE, "9 3 2 3")]
    lines = [
        Line(f"tIoU {tiou[i]:g}", _percents(evals, i), colour, dash, 1.6, dots=len(evals) < 30)
        for i, (colour, dash) in zip(shown, styles, strict=False)
    ]
    average = [(e["epoch"], 100 * e["metrics"]["average_mAP"]) for e in evals]
    lines.append(Line("average", average, BLUE, width=2.8, dots=len(evals) < 60))
    return line_chart(lines, x_label="epoch", title="mAP over epochs, percent", unit=" %")


def _percents(evals: Sequence[Mapping[str, Any]], index: int) -> list[tuple[float, float]]:
    same = [e for e in evals if len(e["metrics"]["mAP"]) > index]
    return [(e["epoch"], 100 * e["metrics"]["mAP"][index]) for e in same]


def precision_chart(points: Sequence[tuple[float, float]], best: tuple[float, float], *, tiou: float) -> str:
    """Precision over recall of all classes together, both in percent, with a dot at the best F1."""
    lines = [Line("all classes", points, BLUE, width=2.4), Line("best F1", [best], VERMILION, width=3.5)]
    title = f"Precision over recall at tIoU {tiou:g}"
    return line_chart(lines, x_label="recall, percent", title=title, unit=" %", x_range=(0, 100), named=False)
