"""The report's section on errors: what the detections are, what each kind costs, which actions are missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from train.evaluation.diagnosis import DETECTION_KINDS, ERROR_KINDS
from train.evaluation.tables import TITLES
from train.report.charts import column_chart
from train.report.diagnosis_charts import (
    COLOURS,
    bin_text,
    bins_chart,
    profile_chart,
    recall_at_k_chart,
    recall_chart,
)
from train.report.page import render
from train.report.svg import value_text

SHORT = {**TITLES, "double": "double", "confusion": "confusion"}
MEANING = {
    "true_positive": "label and place are right",
    "double": "right, but of an action found already",
    "wrong_label": "only the place is right",
    "localisation": "label right, place near",
    "confusion": "near an action of another label",
    "background": "near no true action",
}
CHARACTERISTICS = {
    "coverage": "share of the video",
    "length": "of the action",
    "instances": "actions in the video",
}
BY_KIND = {"average_mAP_N": "mAP_N by kind of true action", "false_negatives": "True actions missed"}


def error_section(metrics: Mapping[str, Any]) -> Markup:
    """metrics: as `evaluate` returns them, with "diagnosis"."""
    diagnosis, recall = metrics["diagnosis"], metrics["recall"]
    characteristics = diagnosis["characteristics"]
    figures = f"AR@100 {100 * recall['AR']['100']:.1f} %, area under the curve {100 * recall['AUC']:.1f} %."
    values = {
        "tiou": f"tIoU {diagnosis['tiou'][0]:g} to {diagnosis['tiou'][-1]:g}",
        "kinds": [(COLOURS[name], SHORT[name], MEANING[name]) for name in DETECTION_KINDS],
        "profile": profile_chart(diagnosis["profile"]["groups"]),
        "gains": gains_chart(diagnosis["top"]["gain"]),
        "recall": recall_chart(recall),
        "recall_figures": figures,
        "recall_at_k": recall_at_k_chart(recall["recall_at"]),
        "by_kind": [by_kind_chart(diagnosis, measure, title) for measure, title in BY_KIND.items()],
        "characteristics": [
            {"name": name, "meaning": CHARACTERISTICS[name], "scheme": scheme_text(entry["scheme"])}
            for name, entry in characteristics.items()
        ],
        "bin_rows": bin_rows(characteristics),
    }
    return render("errors.html.j2", values)


def gains_chart(gain: Mapping[str, float]) -> Markup:
    """A column for each kind of error: mAP_N without it, in points more."""
    columns = [(SHORT[name], 100 * gain[name]) for name in ERROR_KINDS]
    title = "mAP_N gained without this kind of error, points"
    return column_chart(columns, x_label="kind of error", title=title)


def by_kind_chart(diagnosis: Mapping[str, Any], measure: str, title: str) -> tuple[str, str, Markup]:
    """Title, figure of all true actions in percent, and chart of a measure by kind of true action."""
    base = diagnosis[measure]
    chart = bins_chart(diagnosis["characteristics"], measure, base, title=f"{title}, percent")
    return title, value_text(100 * base), chart


def scheme_text(scheme: str) -> str:
    """Where the bins' ends come from."""
    return "a fifth of these actions each" if scheme == "quintiles" else "bins of DETAD"


def bin_rows(characteristics: Mapping[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """Per bin and characteristic, the range and its number of true actions."""
    rows: dict[str, list[tuple[str, int]]] = {}
    for name, entry in characteristics.items():
        for item in entry["bins"]:
            rows.setdefault(item["name"], []).append((bin_text(name, item), item["num_true"]))
    return rows
