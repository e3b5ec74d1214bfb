"""The report on errors: what the detections are, what each kind of error costs, which actions are missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.text import counted
from train.evaluation.diagnosis import DETECTION_KINDS, ERROR_KINDS
from train.evaluation.tables import TITLES
from train.report.charts import (
    BOTTOM,
    HEIGHT,
    LEAST,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    column_chart,
    grid,
    line_chart,
)
from train.report.page import card
from train.report.svg import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    Axis,
    figure,
    image,
    number,
    rule,
    tag,
    value_axis,
    words,
)

COLOURS = dict(zip(DETECTION_KINDS, (BLUE, SKY, PURPLE, GREEN, ORANGE, "#c3ccd6"), strict=True))
SHORT = {**TITLES, "double": "double", "confusion": "confusion"}
MEANING = {
    "true_positive": "label and place are right",
    "double": "right, but of an action found already",
    "wrong_label": "only the place is right",
    "localisation": "label right, place near",
    "confusion": "near an action of another label",
    "background": "near no true action",
}
BINS = {  # characteristic: factor, unit of its edges, what it is
    "coverage": (100, " %", "share of the video"),
    "length": (1, " s", "of the action"),
    "instances": (1, "", "actions in the video"),
}
PAD = 0.14  # of a slot, left free on either side of a column


def profile_chart(groups: Sequence[Sequence[float]]) -> str:
    """A column per G detections of falling score, cut into the shares of DETECTION_KINDS, percent."""
    x = Axis(0, len(groups), (), LEFT, WIDTH - RIGHT)
    y = Axis(0, 100, (0, 20, 40, 60, 80, 100), HEIGHT - BOTTOM, TOP)
    parts = grid(x, y, "detections of each class by falling score", " %")
    for place, group in enumerate(groups):
        left, width = x(place + PAD), x(place + 1 - PAD) - x(place + PAD)
        base = 0.0
        for name, count in zip(DETECTION_KINDS, group, strict=True):
            share = 100 * count / (sum(group) or 1)
            box = {"x": left, "y": y(base + share), "width": width, "height": y(base) - y(base + share)}
            title = f"{place + 1}G: {TITLES[name]} {share:.1f} %"
            if share:
                parts.append(tag("rect", title=title, fill=COLOURS[name], stroke="#fff", **box))
            base += share
        parts.append(words(left + width / 2, y.start + 18, f"{place + 1}G", "tick", anchor="middle"))
    title = "Kinds of detections by rank, percent"
    return image(parts, title, width=WIDTH, height=HEIGHT)


def bins_chart(characteristics: Mapping[str, Any], measure: str, base: float, *, title: str) -> str:
    """A column per bin of each characteristic, percent; the dashed line is the figure of all true actions."""
    slots: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, entry in characteristics.items():
        slots += [(name, None)] if slots else []
        slots += [(name, item) for item in entry["bins"]]
    values = [100 * item[measure] for _, item in slots if item is not None and item[measure] is not None]
    y = value_axis([*values, 100 * base], HEIGHT - BOTTOM, TOP + 14, least=LEAST)
    x = Axis(0, len(slots), (), LEFT, WIDTH - RIGHT)
    parts, labels = grid(x, y, "", " %"), []
    for place, (name, item) in enumerate(slots):
        middle = x(place + 0.5)
        if item is None:
            continue
        parts.append(words(middle, y.start + 16, item["name"], "tick", anchor="middle"))
        if item[measure] is None:
            continue
        value, width = 100 * item[measure], (1 - 2 * PAD) * (x(1) - x(0))
        box = {"x": middle - width / 2, "y": y(value), "width": width, "height": y.start - y(value), "rx": 2}
        actions = counted(item["num_true"], "true action")
        about = f"{name} {item['name']}, {bin_text(name, item)}: {value:.2f} %, {actions}"
        parts.append(tag("rect", title=about, class_="column", **box))
        labels.append(words(middle, y(value) - 5, figure(value, 2), "value", anchor="middle"))
    for name in characteristics:
        places = [place for place, (owner, item) in enumerate(slots) if owner == name and item is not None]
        middle = x((places[0] + places[-1] + 1) / 2)
        parts.append(words(middle, HEIGHT - 7, name, "name", anchor="middle"))
    parts.append(rule(x.start, y(100 * base), x.end, y(100 * base), "cut"))
    return image(parts + labels, title, width=WIDTH, height=HEIGHT)


def recall_chart(recall: Mapping[str, Any]) -> str:
    """AR over the average number of detections per video, percent."""
    points = [(float(number), 100 * value) for number, value in enumerate(recall["curve"], 1)]
    return line_chart(
        [Line("AR", points, BLUE, width=2.6)],
        x_label="detections per video on average (AN)",
        title="Average recall over the number of detections, percent",
        unit=" %",
        x_range=(0, 100),
        named=False,
    )


def bin_text(name: str, item: Mapping[str, Any]) -> str:
    """The range of a bin of a characteristic: 2 to 4 %, over 18 s; instances as whole numbers."""
    factor, unit, _ = BINS[name]
    if item["high"] is None:
        return f"over {number(factor * item['low'])}{unit}"
    low, high = factor * item["low"], factor * item["high"]
    if name == "instances":
        return number(high) if low + 1 >= high else f"{number(low + 1)} to {number(high)}"
    return f"{number(float(f'{low:.3g}'))} to {number(float(f'{high:.3g}'))}{unit}"


def bins_table(characteristics: Mapping[str, Any]) -> str:
    """A row per bin, a column per characteristic: range and number of true actions, as HTML."""
    head, rows = "", dict[str, str]()
    for name, entry in characteristics.items():
        origin = "a fifth of these actions each" if entry["scheme"] == "quintiles" else "bins of DETAD"
        head += f'<th scope="col">{name}<small>{BINS[name][2]}; {origin}</small></th>'
        for item in entry["bins"]:
            cell = f"<td>{bin_text(name, item)} <small>({item['num_true']:,})</small></td>"
            rows[item["name"]] = rows.get(item["name"], "") + cell
    body = "".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows.items())
    return f'<table><thead><tr><th scope="col">bin</th>{head}</tr></thead><tbody>{body}</tbody></table>'


def kinds_key() -> str:
    """The kinds of detections with their colours, as HTML."""
    return "".join(
        f'<span><i style="background:{COLOURS[name]}"></i><b>{SHORT[name]}</b> {MEANING[name]}</span>'
        for name in DETECTION_KINDS
    )


def error_section(metrics: Mapping[str, Any]) -> str:
    """The HTML of the section; metrics: as `evaluate` returns them, with "diagnosis"."""
    diagnosis, recall = metrics["diagnosis"], metrics["recall"]
    tiou = f"tIoU {diagnosis['tiou'][0]:g} to {diagnosis['tiou'][-1]:g}"
    source = f"After DETAD (Alwassel et al., ECCV 2018), averaged over {tiou}."
    note = f"{source} Near: a tIoU of 0.1 or more, but too little."
    cards = kind_cards(diagnosis) + recall_cards(recall, tiou) + bin_cards(diagnosis)
    return f'<h2>Errors</h2><p class="note">{note}</p><div class="grid2">{cards}</div>'


def kind_cards(diagnosis: Mapping[str, Any]) -> str:
    """What the detections are, and what each kind of error costs."""
    gains = [(SHORT[name], 100 * diagnosis["top"]["gain"][name]) for name in ERROR_KINDS]
    title = "mAP_N gained without this kind of error, points"
    key = f'<div class="kinds">{kinds_key()}</div>'
    note = "1G: of each class the best detections, as many as it has true actions; 2G: as many again."
    chart = card("What the detections are", profile_chart(diagnosis["profile"]["groups"]), note)
    note = "mAP_N takes precision as if all classes were equally frequent."
    return key + chart + card(title, column_chart(gains, x_label="kind of error", title=title), note)


def recall_cards(recall: Mapping[str, Any], tiou: str) -> str:
    """Recall whatever the label, and with the label."""
    figures = f"AR@100 {100 * recall['AR']['100']:.1f} %, area under the curve {100 * recall['AUC']:.1f} %."
    table = recall["recall_at"]
    means = [100 * sum(row) / len(row) for row in zip(*table["same_class"], strict=True)]
    at_k = column_chart(
        [(str(k), value) for k, value in zip(table["k"], means, strict=True)],
        x_label="detections of a video, the best first (k)",
        title="Recall at k, percent",
        unit=" %",
    )
    note = f"True actions with a detection of their class, averaged over {tiou}."
    return card("Average recall (AR@AN)", recall_chart(recall), figures) + card("Recall at k", at_k, note)


def bin_cards(diagnosis: Mapping[str, Any]) -> str:
    """Precision and misses by kind of true action, and which kinds these are."""
    characteristics, cards = diagnosis["characteristics"], ""
    titles = {"average_mAP_N": "mAP_N by kind of true action", "false_negatives": "True actions missed"}
    for measure, title in titles.items():
        chart = bins_chart(characteristics, measure, diagnosis[measure], title=f"{title}, percent")
        cards += card(title, chart, f"Dashed: all true actions, {figure(100 * diagnosis[measure])} %.")
    note = "In brackets: how many. A range holds its upper end, but not its lower."
    return cards + card("Kinds of true actions", bins_table(characteristics), note, wide=True)
