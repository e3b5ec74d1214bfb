"""Charts of what detections are, of figures by kind of true action, and of recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.text import counted
from train.evaluation.diagnosis import DETECTION_KINDS
from train.evaluation.tables import TITLES
from train.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MIN_PERCENT_HIGH,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    column_chart,
    grid,
    line_chart,
)
from train.report.svg import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    Axis,
    image,
    rule,
    tag,
    text,
    tick_text,
    value_axis,
    value_text,
)

COLOURS = dict(zip(DETECTION_KINDS, (BLUE, SKY, PURPLE, GREEN, ORANGE, "#c3ccd6"), strict=True))
# of the ends of a bin: what multiplies them, and their unit
UNITS = {"coverage": (100, " %"), "length": (1, " s"), "instances": (1, "")}
PAD = 0.14  # of a slot, left free on either side of a column


def profile_chart(groups: Sequence[Sequence[float]]) -> Markup:
    """A column per G detections of falling score, cut into the shares of DETECTION_KINDS, percent."""
    x = Axis(0, len(groups), (), LEFT, WIDTH - RIGHT)
    y = Axis(0, 100, (0, 20, 40, 60, 80, 100), HEIGHT - BOTTOM, TOP)
    parts = grid(x, y, "detections of each class by falling score", " %")
    for column, group in enumerate(groups):
        left, width = x(column + PAD), x(column + 1 - PAD) - x(column + PAD)
        base = 0.0
        for name, count in zip(DETECTION_KINDS, group, strict=True):
            share = 100 * count / (sum(group) or 1)
            box = {"x": left, "y": y(base + share), "width": width, "height": y(base) - y(base + share)}
            title = f"{column + 1}G: {TITLES[name]} {share:.1f} %"
            if share:
                parts.append(tag("rect", title=title, fill=COLOURS[name], stroke="#fff", **box))
            base += share
        parts.append(text(left + width / 2, y.start + 18, f"{column + 1}G", "tick", anchor="middle"))
    title = "Kinds of detections by rank, percent"
    return image(parts, title, width=WIDTH, height=HEIGHT)


def bins_chart(characteristics: Mapping[str, Any], measure: str, base: float, *, title: str) -> Markup:
    """A column per bin of each characteristic, percent; the dashed line is the figure of all true actions."""
    slots: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, entry in characteristics.items():
        slots += [(name, None)] if slots else []  # a free slot between two characteristics
        slots += [(name, item) for item in entry["bins"]]
    values = [100 * item[measure] for _, item in slots if item is not None and item[measure] is not None]
    y = value_axis([*values, 100 * base], HEIGHT - BOTTOM, TOP + 14, min_high=MIN_PERCENT_HIGH)
    x = Axis(0, len(slots), (), LEFT, WIDTH - RIGHT)
    parts, labels = grid(x, y, "", " %"), []
    for slot, (name, item) in enumerate(slots):
        if item is None:
            continue
        middle = x(slot + 0.5)
        parts.append(text(middle, y.start + 16, item["name"], "tick", anchor="middle"))
        if item[measure] is None:
            continue
        value, width = 100 * item[measure], (1 - 2 * PAD) * (x(1) - x(0))
        box = {"x": middle - width / 2, "y": y(value), "width": width, "height": y.start - y(value), "rx": 2}
        parts.append(tag("rect", title=bin_title(name, item, value), class_="column", **box))
        labels.append(text(middle, y(value) - 5, value_text(value, 2), "value", anchor="middle"))
    for name in characteristics:
        own = [slot for slot, (owner, item) in enumerate(slots) if owner == name and item is not None]
        parts.append(text(x((own[0] + own[-1] + 1) / 2), HEIGHT - 7, name, "name", anchor="middle"))
    parts.append(rule(x.start, y(100 * base), x.end, y(100 * base), "cut"))
    return image(parts + labels, title, width=WIDTH, height=HEIGHT)


def bin_title(name: str, item: Mapping[str, Any], value: float) -> str:
    """What a column of `bins_chart` stands for; value in percent."""
    actions = counted(item["num_true"], "true action")
    return f"{name} {item['name']}, {bin_text(name, item)}: {value:.2f} %, {actions}"


def recall_chart(recall: Mapping[str, Any]) -> Markup:
    """AR over the average number of detections per video, percent."""
    points = [(float(count), 100 * value) for count, value in enumerate(recall["curve"], 1)]
    return line_chart(
        [Line("AR", points, BLUE, width=2.6)],
        x_label="detections per video on average (AN)",
        title="Average recall over the number of detections, percent",
        unit=" %",
        x_range=(0, 100),
        named=False,
    )


def recall_at_k_chart(table: Mapping[str, Any]) -> Markup:
    """A column for each k: recall of the label and the segment, averaged over tIoU, percent."""
    means = [100 * sum(row) / len(row) for row in zip(*table["same_class"], strict=True)]
    return column_chart(
        [(str(k), value) for k, value in zip(table["k"], means, strict=True)],
        x_label="detections of a video, the best first (k)",
        title="Recall at k, percent",
        unit=" %",
    )


def bin_text(name: str, item: Mapping[str, Any]) -> str:
    """The range of a bin of a characteristic: 2 to 4 %, over 18 s; instances as whole numbers."""
    factor, unit = UNITS[name]
    if item["high"] is None:
        return f"over {tick_text(factor * item['low'])}{unit}"
    low, high = factor * item["low"], factor * item["high"]
    if name == "instances":
        return tick_text(high) if low + 1 >= high else f"{tick_text(low + 1)} to {tick_text(high)}"
    return f"{tick_text(float(f'{low:.3g}'))} to {tick_text(float(f'{high:.3g}'))}{unit}"
