"""SVG elements as Markup, and axes with round tick values; no resources from elsewhere.

Colours are Okabe and Ito's, distinct for every kind of colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9"


def tag(name: str, content: str = "", /, *, title: str = "", **attributes: str | float | None) -> Markup:
    """One element. Attributes: `class_` for class, `stroke_width` for stroke-width, None for absent.

    content: escaped unless it is Markup; title: shown when the pointer rests on the element.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value == "":
            continue
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    opening, inside = " ".join(parts), escape(content)
    if title:
        inside = Markup("<title>{}</title>").format(title) + inside
    return Markup(f"<{opening}>{inside}</{name}>" if inside else f"<{opening}/>")


def text(
    x: float, y: float, content: str, class_: str, *, anchor: str | None = None, title: str = ""
) -> Markup:
    """Text at (x, y); anchor: middle, end or (None) start."""
    return tag("text", content, title=title, class_=class_, x=x, y=y, text_anchor=anchor)


def rule(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", class_=class_, x1=x1, y1=y1, x2=x2, y2=y2)


def image(parts: Sequence[Markup], title: str, *, width: float, height: float) -> Markup:
    """The parts as one image that scales with the page. title: what a screen reader says."""
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", Markup("").join(parts), class_="chart", viewBox=box, role="img", aria_label=title)


FILE_STYLE = "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#444}.title{font-weight:600}"


def image_file(parts: Sequence[Markup], title: str, *, width: float, height: float, style: str = "") -> str:
    """The parts as an SVG file, complete in itself. style: more of it than FILE_STYLE."""
    content = Markup("").join([tag("style", FILE_STYLE + style), *parts])
    box, space = f"0 0 {width:g} {height:g}", "http://www.w3.org/2000/svg"
    return f"{tag('svg', content, xmlns=space, viewBox=box, aria_label=title)}\n"


@dataclass(frozen=True)
class Axis:
    """From value to pixel: `low` is at `start`, `high` at `end`; marks at `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def nice_step(span: float, count: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten that cuts `span` into at most `count` intervals."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def range_axis(
    low: float, high: float, start: float, end: float, *, intervals: int = 6, whole: bool = False
) -> Axis:
    """An axis over [low, high]; `whole`: marks at whole numbers only. A single value sits in the middle."""
    if high <= low:
        return Axis(low - 1, low + 1, (low,), start, end)
    step = nice_step(high - low, intervals)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(i * step for i in range(first, last + 1)), start, end)


def value_axis(values: Sequence[float], start: float, end: float, *, min_high: float = 0.0) -> Axis:
    """An axis from 0 (or a mark below the lowest value) to a mark above the highest.

    min_high: where the axis ends at the earliest; without it, zeros alone have an axis to 1.
    """
    low, high = min(0.0, *values), max(min_high, *values) or 1.0
    step = nice_step(high - low, 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, start, end)


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis of whole decades around the values, all of which are above 0."""
    first = math.floor(math.log10(min(values)))
    last = max(math.ceil(math.log10(max(values))), first + 1)
    ticks = tuple(10.0**i for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, start, end, log=True)


def value_text(value: float, digits: int = 3) -> str:
    """A value beside its mark, in so many digits: 93.2, 6.82, 0.31; exactly 0 has no decimals."""
    return f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}" if value else "0"


def tick_text(value: float) -> str:
    """A tick's text: four significant digits, 12000 as 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
