"""Line charts and column charts as SVG, all of one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from train.report.svg import (
    BLUE,
    Axis,
    image,
    log_axis,
    range_axis,
    rule,
    tag,
    text,
    tick_text,
    value_axis,
    value_text,
)

WIDTH, HEIGHT = 480, 270  # of a chart, in the units of its SVG, as all below
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 44  # margins
NAMES = 132  # the right margin where it holds the lines' names; more where one is longer
NAME_START, CHARACTER = 31, 7.6  # from the end of the x axis to a name; a letter of a wide font, 13.5 pixels
LABEL_GAP = 15  # between the names at the lines' ends
MAX_POINTS = 300  # of a line; of more, every so many-th is drawn
MIN_PERCENT_HIGH = 1.0  # where an axis of percents ends at the earliest


@dataclass(frozen=True)
class Line:
    """One named line: points (x, y) by rising x. Dashes distinguish lines where colours cannot."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    dash: str = ""
    width: float = 2.0
    dots: bool = False
    faint: bool = False  # drawn behind the others, without a name

    @property
    def stroke(self) -> dict[str, Any]:
        """The attributes that `tag` takes."""
        return {"stroke": self.colour, "stroke_width": self.width, "stroke_dasharray": self.dash}


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Running mean over the last `window` points, fewer at the beginning; at MAX_POINTS of them at most."""
    means = []
    step = max(1, math.ceil(len(points) / MAX_POINTS))
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


def grid(x: Axis, y: Axis, x_label: str, unit: str) -> list[Markup]:
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


def draw_line(line: Line, x: Axis, y: Axis, unit: str) -> Markup:
    """The line with its dots; one dot where there is one point only."""
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    opacity = 0.28 if line.faint else None
    parts = [tag("polyline", points=path, fill="none", opacity=opacity, **line.stroke)]
    if line.dots or len(line.points) == 1:
        for a, b in line.points:
            title = f"{line.name}: {tick_text(b)}{unit} at {tick_text(a)}"
            radius = line.width + 1.5
            parts.append(tag("circle", title=title, cx=x(a), cy=y(b), r=radius, fill=line.colour))
    return Markup("").join(parts)


def name_lines(lines: Sequence[Line], x: Axis, y: Axis) -> list[Markup]:
    """Each line's name beside its last point, pushed apart where they would overlap."""
    left, name_left = x.end + 6.0, x.end + NAME_START
    parts = []
    positions = spread([y(line.points[-1][1]) for line in lines], y.end + 4, y.start)
    for line, position in zip(lines, positions, strict=True):
        parts.append(tag("line", x1=left, x2=left + 20, y1=position, y2=position, **line.stroke))
        parts.append(text(name_left, position + 4, line.name, "name"))
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
) -> Markup:
    """All lines over one x axis, `named` at their ends. Points that are not finite are left out.

    log: a logarithmic y axis; all values have to be above 0. x_range: ends of the x axis; without it, the
    data's. title: what a screen reader says. unit: of y; with one, y is in percent.
    """
    lines = [replace(line, points=[p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup('<p class="note">No finite value was logged.</p>')
    xs = [a for line in lines for a, _ in line.points]
    ys = [b for line in lines for _, b in line.points]
    low, high = x_range or (min(xs), max(xs))
    labelled = [line for line in lines if named and not line.faint]
    right = max([NAMES if named else RIGHT, *(NAME_START + CHARACTER * len(line.name) for line in labelled)])
    x = range_axis(low, high, LEFT, WIDTH - right, whole=True)
    bottom, min_high = HEIGHT - BOTTOM, MIN_PERCENT_HIGH if unit else 0.0
    y = log_axis(ys, bottom, TOP) if log else value_axis(ys, bottom, TOP, min_high=min_high)
    parts = grid(x, y, x_label, unit)
    parts += [draw_line(line, x, y, unit) for line in sorted(lines, key=lambda line: not line.faint)]
    parts += name_lines(labelled, x, y)
    return image(parts, title, width=WIDTH, height=HEIGHT)


def column_chart(values: Sequence[tuple[str, float]], *, x_label: str, title: str, unit: str = "") -> Markup:
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
