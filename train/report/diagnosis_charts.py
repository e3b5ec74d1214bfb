"""The report on errors: what the detections are, what each kind of error costs, which actions are missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from train.assess import TITLES, bin_range
from train.diagnosis import ERRORS, OUTCOMES
from train.report.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Line, column_chart, grid, line_chart
from train.report.page import card
from train.report.svg import BLUE, GREEN, ORANGE, PURPLE, SKY, Axis, image, rule, tag, value_axis, words

COLOURS = dict(zip(OUTCOMES, (BLUE, SKY, PURPLE, GREEN, ORANGE, "#c3ccd6"), strict=True))
SHORT = {**TITLES, "double": "double", "confusion": "confusion"}
KEY_WIDTH = 118  # of the names beside the columns
PAD = 0.14  # of a slot, left free on either side of a column


def profile_chart(groups: Sequence[Sequence[float]]) -> str:
    """A column per G detections of falling score, cut into the shares of OUTCOMES, percent."""
    x = Axis(0, len(groups), (), LEFT, WIDTH - KEY_WIDTH)
    y = Axis(0, 100, (0, 20, 40, 60, 80, 100), HEIGHT - BOTTOM, TOP)
    parts = grid(x, y, "detections of each class by falling score (G: its true actions)", " %")
    for place, group in enumerate(groups):
        left, width = x(place + PAD), x(place + 1 - PAD) - x(place + PAD)
        base = 0.0
        for name, count in zip(OUTCOMES, group, strict=True):
            share = 100 * count / (sum(group) or 1)
            box = {"x": left, "y": y(base + share), "width": width, "height": y(base) - y(base + share)}
            title = f"{place + 1}G: {TITLES[name]} {share:.1f} %"
            if share:
                parts.append(tag("rect", title=title, fill=COLOURS[name], stroke="#fff", **box))
            base += share
        parts.append(words(left + width / 2, y.start + 18, f"{place + 1}G", "tick", anchor="middle"))
    for row, name in enumerate(reversed(OUTCOMES)):
        top, left = TOP + 10 + 24 * row, WIDTH - KEY_WIDTH + 12
        parts.append(tag("rect", x=left, y=top, width=13, height=13, rx=2, fill=COLOURS[name]))
        parts.append(words(left + 19, top + 11, SHORT[name], "name"))
    title = "Kinds of detections by rank, percent"
    return image(parts, title, width=WIDTH, height=HEIGHT)


def bins_chart(characteristics: Mapping[str, Any], measure: str, base: float, *, title: str) -> str:
    """A column per bin of each characteristic, percent; the dashed line is the figure of all true actions."""
    slots: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, entry in characteristics.items():
        slots += [(name, None)] if slots else []
        slots += [(name, item) for item in entry["bins"]]
    values = [100 * item[measure] for _, item in slots if item is not None and item[measure] is not None]
    y = value_axis([*values, 100 * base], HEIGHT - BOTTOM, TOP + 14)
    x = Axis(0, len(slots), (), LEFT, WIDTH - 10)
    parts = grid(x, y, "", " %")
    for place, (name, item) in enumerate(slots):
        middle = x(place + 0.5)
        if item is None:
            continue
        parts.append(words(middle, y.start + 16, item["name"], "tick", anchor="middle"))
        if item[measure] is None:
            continue
        value, width = 100 * item[measure], (1 - 2 * PAD) * (x(1) - x(0))
        box = {"x": middle - width / 2, "y": y(value), "width": width, "height": y.start - y(value), "rx": 2}
        about = (
            f"{name} {item['name']} {bin_range(item, False)}: {value:.1f} %, {item['num_true']} true actions"
        )
        parts.append(tag("rect", title=about, class_="column", **box))
        parts.append(words(middle, y(value) - 5, f"{value:.0f}", "value", anchor="middle"))
    for name in characteristics:
        places = [place for place, (owner, item) in enumerate(slots) if owner == name and item is not None]
        middle = x((places[0] + places[-1] + 1) / 2)
        parts.append(words(middle, HEIGHT - 7, name, "name", anchor="middle"))
    parts.append(rule(x.start, y(100 * base), x.end, y(100 * base), "cut"))
    return image(parts, title, width=WIDTH, height=HEIGHT)


def recall_chart(recall: Mapping[str, Any]) -> str:
    """AR over the average number of detections per video, percent."""
    points = [(float(number), 100 * value) for number, value in enumerate(recall["curve"], 1)]
    return line_chart(
        [Line("AR", points, BLUE, width=2.6)],
        x_label="detections per video on average (AN)",
        title="Average recall over the number of detections, percent",
        unit=" %",
        x_range=(0, 100),
    )


def bins_note(characteristics: Mapping[str, Any]) -> str:
    """The edges of all bins in words."""
    said = []
    for name, entry in characteristics.items():
        ranges = ", ".join(
            f"{item['name']} {bin_range(item, i == 0)}" for i, item in enumerate(entry["bins"])
        )
        origin = "quintiles of this data" if entry["scheme"] == "quintiles" else "DETAD's bins"
        said.append(f"{name} ({entry['unit']}; {origin}): {ranges}")
    return f"A range holds its upper end. {'; '.join(said)}."


def error_section(metrics: Mapping[str, Any]) -> str:
    """The HTML of the section; metrics: as `assess` returns them, with "diagnosis"."""
    diagnosis, recall = metrics["diagnosis"], metrics["recall"]
    top, characteristics = diagnosis["top"], diagnosis["characteristics"]
    gains = [(SHORT[name], 100 * top["gain"][name]) for name in ERRORS]
    gain_chart = column_chart(gains, x_label="kind of error", title="mAP gained, points", unit="")
    tiou = f"tIoU {diagnosis['tiou'][0]:g} to {diagnosis['tiou'][-1]:g}"
    cards = card("What the detections are", profile_chart(diagnosis["profile"]["groups"]))
    cards += card("mAP_N gained without an error, points", gain_chart)
    areas = bins_chart(
        characteristics, "average_mAP_N", diagnosis["average_mAP_N"], title="mAP_N by kind of true action"
    )
    missed = bins_chart(
        characteristics, "false_negatives", diagnosis["false_negatives"], title="True actions missed, percent"
    )
    cards += card("mAP_N by kind of true action", areas) + card("True actions missed", missed)
    figures = f"AR@100 {100 * recall['AR']['100']:.1f} %, area under the curve {100 * recall['AUC']:.1f} %."
    cards += card("Average recall (ActivityNet's AR@AN)", recall_chart(recall), figures)
    table = recall["recall_at"]
    means = [100 * sum(row) / len(row) for row in zip(*table["same_class"], strict=True)]
    at_k = column_chart(
        [(str(k), value) for k, value in zip(table["k"], means, strict=True)],
        x_label="detections of a video, the best first",
        title="Recall at k, percent",
        unit=" %",
    )
    cards += card("Recall at k", at_k, f"True actions with a detection of their class, averaged over {tiou}.")
    note = (
        f"After DETAD (Alwassel et al., ECCV 2018), averaged over {tiou}. A wrong detection repeats a true "
        "action (double), names it wrongly (wrong label), overlaps it too little (localisation), both "
        "(confusion: tIoU from 0.1), or overlaps none (background). mAP_N takes precision as if all classes "
        "were equally frequent. Dashed: all true actions."
    )
    bins = f'<p class="note" style="margin-top:12px">{escape(bins_note(characteristics))}</p>'
    return f'<h2>Errors</h2><p class="note">{escape(note)}</p><div class="grid2">{cards}</div>{bins}'
