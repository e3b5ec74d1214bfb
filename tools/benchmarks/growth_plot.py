"""The plot of bench-growth: for each axis, how many times the cost at size 1 each command takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from train.report.charts import Line, draw_line, name_lines
from train.report.svg import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Axis, image_file, rule, tag, text

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
WIDTH, HEIGHT, HEAD = 400, 270, 30  # of a panel, and above all of them; units of the image
LEFT, RIGHT, TOP, BOTTOM = 40, 112, 26, 36  # margins of a panel
COLUMNS = 2
LEAST = 0.8  # where the axis of costs begins: of noise, one can be below 1


def plot(rows: Sequence[dict[str, Any]], factors: Sequence[int]) -> str:
    """The image as SVG, complete in itself. rows: axis, command, its seconds by factor, its exponent."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    title = "CPU seconds as multiples of those at size 1; grey: in proportion; numbers: exponents"
    parts = [text(16, 19, title, "title")]
    for number, axis in enumerate(axes):
        x, y = number % COLUMNS * WIDTH, HEAD + number // COLUMNS * HEIGHT
        inside = panel([row for row in rows if row["axis"] == axis], axis, factors)
        parts.append(tag("g", inside, transform=f"translate({x} {y})"))
    height = HEAD + -(-len(axes) // COLUMNS) * HEIGHT
    return image_file(parts, title, width=COLUMNS * WIDTH, height=height)


def panel(rows: Sequence[dict[str, Any]], axis: str, factors: Sequence[int]) -> Markup:
    """One axis: a line for each command, both scales logarithmic, so that an exponent is a slope."""
    lines = [
        Line(
            f"{row['command']} {row['exponent']:.2f}",
            [(f, max(LEAST, s / row["seconds"][0])) for f, s in zip(factors, row["seconds"], strict=True)],
            colour,
            dots=True,
        )
        for row, colour in zip(rows, COLOURS, strict=True)
    ]
    ticks = tuple(float(factor) for factor in factors)
    highest = max([ticks[-1], *(cost for line in lines for _, cost in line.points)])
    x = Axis(1, ticks[-1], ticks, LEFT, WIDTH - RIGHT, log=True)
    y = Axis(LEAST, highest, ticks, HEIGHT - BOTTOM, TOP, log=True)
    parts = []
    for tick in ticks:
        parts.append(rule(x.start, y(tick), x.end, y(tick), "grid"))
        parts.append(text(x.start - 8, y(tick) + 4, f"{tick:g}", "tick", anchor="end"))
        parts.append(text(x(tick), y.start + 16, f"{tick:g}", "tick", anchor="middle"))
    parts.append(text((x.start + x.end) / 2, HEIGHT - 4, f"times the {axis}", "tick", anchor="middle"))
    proportion = Line("in proportion", [(1, 1), (ticks[-1], ticks[-1])], "#888", dash="4 4", faint=True)
    parts += [draw_line(line, x, y, "") for line in (proportion, *lines)]
    return Markup("").join([*parts, *name_lines(lines, x, y)])
