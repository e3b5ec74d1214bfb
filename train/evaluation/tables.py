"""The metrics of an evaluation as text tables, in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.text import columns, shown
from train.evaluation.average_precision import format_map_table
from train.evaluation.bootstrap import too_few
from train.evaluation.diagnosis import DETECTION_KINDS
from train.evaluation.recall import format_recall

TITLES = {
    "true_positive": "true positive",
    "double": "double detection",
    "wrong_label": "wrong label",
    "localisation": "localisation",
    "confusion": "confusion (label and place)",
    "background": "background",
}


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The tables of everything that `evaluate` returns, in percent."""
    parts = [format_map_table(metrics), format_recall(metrics["recall"], metrics.get("intervals"))]
    if "intervals" in metrics:
        parts.insert(1, interval_note(metrics["intervals"]))
    if "diagnosis" in metrics:
        intervals = metrics.get("intervals", {}).get("diagnosis")
        parts += ["", format_diagnosis(metrics["diagnosis"], intervals), "", class_table(metrics)]
    return "\n".join(parts)


def interval_note(intervals: Mapping[str, Any]) -> str:
    """What the rows low and high are, or why they are empty."""
    return too_few(intervals["num_videos"]) or (
        f"low, high: {100 * intervals['level']:g} % interval, percentiles of {intervals['resamples']:,} "
        f"resamples of the videos (seed {intervals['seed']})"
    )


def format_diagnosis(diagnosis: Mapping[str, Any], intervals: Mapping[str, Any] | None = None) -> str:
    """Kinds of detections with what each error costs, their profile, and the bins of the characteristics."""
    tables = [kind_table(diagnosis, intervals), profile_table(diagnosis), bin_table(diagnosis)]
    return "\n\n".join(tables)


def format_interval(bounds: Sequence[float | None] | None) -> str:
    """An interval in percent; empty without one."""
    if not bounds or bounds[0] is None or bounds[1] is None:
        return ""
    return f"{100 * bounds[0]:.1f} .. {100 * bounds[1]:.1f}"


def kind_table(diagnosis: Mapping[str, Any], intervals: Mapping[str, Any] | None) -> str:
    """A row per kind of detection: share of the best 10 G, mAP_N gained without it, intervals if any."""
    top = diagnosis["top"]
    rows = [["best 10 G detections of a class", "share %", "mAP_N gain"]]
    if intervals:
        rows[0][2:2] = ["interval"]
        rows[0] += ["interval"]
    for name in DETECTION_KINDS:
        gain = top["gain"].get(name)
        row = [TITLES[name], f"{100 * top['share'][name]:.1f}", "" if gain is None else f"{100 * gain:.2f}"]
        if intervals:
            row[2:2] = [format_interval(intervals["share"][name])]
            row += [format_interval(intervals["gain"].get(name))]
        rows.append(row)
    note = (
        f"mAP_N (normalised): {100 * diagnosis['average_mAP_N']:.2f} % of all detections, "
        f"{100 * top['average_mAP_N']:.2f} % of the best 10 G; G: true actions of the class"
    )
    return f"{columns(rows)}\n{note}"


def class_table(metrics: Mapping[str, Any]) -> str:
    """A row per class, the best first: AP at the first threshold and on average, and what its best 10 G
    detections are."""
    counts = metrics["diagnosis"]["profile"]["per_class"]
    names = ["true", "double", "label", "place", "both", "background"]
    rows = [["AP % by class", f"tIoU {metrics['tiou'][0]:g}", "average", *(f"{name} %" for name in names)]]
    for name, areas in sorted(metrics["per_class"].items(), key=lambda item: -sum(item[1])):
        total = sum(counts[name])
        shares = [f"{100 * count / total:.0f}" if total else "-" for count in counts[name]]
        rows.append([shown(name), f"{100 * areas[0]:.2f}", f"{100 * sum(areas) / len(areas):.2f}", *shares])
    return columns(rows)


def profile_table(diagnosis: Mapping[str, Any]) -> str:
    """Kinds of detections in percent of the best G detections of each class, the next G, and so on."""
    groups = diagnosis["profile"]["groups"]
    rows = [["outcome %, by rank", *(f"{i + 1}G" for i in range(len(groups)))]]
    for number, name in enumerate(DETECTION_KINDS):
        cells = [f"{100 * group[number] / sum(group):.1f}" if sum(group) else "-" for group in groups]
        rows.append([TITLES[name], *cells])
    return columns(rows)


def bin_range(item: Mapping[str, Any], first: bool) -> str:
    """The bin's interval as text: (low, high], or > low."""
    if item["high"] is None:
        return f"> {item['low']:g}"
    return f"{'[' if first else '('}{item['low']:.4g}, {item['high']:.4g}]"


def bin_table(diagnosis: Mapping[str, Any]) -> str:
    """A row per bin of each characteristic: range, true actions, mAP_N, share of them that is missed."""
    rows = [["true actions by", "bin", "range", "actions", "mAP_N %", "missed %"]]
    for name, entry in diagnosis["characteristics"].items():
        for number, item in enumerate(entry["bins"]):
            title = f"{name}, {entry['unit']} ({entry['scheme']})" if number == 0 else ""
            figures = [item["average_mAP_N"], item["false_negatives"]]
            cells = ["-" if value is None else f"{100 * value:.1f}" for value in figures]
            rows.append([title, item["name"], bin_range(item, number == 0), str(item["num_true"]), *cells])
    base = [f"{100 * diagnosis[name]:.1f}" for name in ("average_mAP_N", "false_negatives")]
    rows.append(["all", "", "", "", *base])
    return columns(rows)
