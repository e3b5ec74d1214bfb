"""The report's section on errors: its columns add up, say what the numbers say, and stay inside the image."""

from __future__ import annotations

import re

import pytest
from metric_cases import found, random_case, video

from train.assess import assess
from train.report.diagnosis_charts import bins_chart, error_section, profile_chart
from train.report.svg import value_axis


def measured(truth, detections):
    return assess(truth, detections, tiou=(0.5, 0.75), protocol="activitynet", diagnosis=True)


def rectangles(svg: str) -> list[dict[str, str]]:
    return [dict(re.findall(r'(\w+)="([^"]*)"', part)) for part in re.findall(r"<rect [^>]*>", svg)]


def test_each_column_of_the_profile_is_full():
    chart = profile_chart([[2, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 3], [0] * 6])
    columns: dict[str, float] = {}
    for box in rectangles(chart):
        if box.get("stroke"):
            columns[box["x"]] = columns.get(box["x"], 0) + float(box["height"])
    full = columns.popitem()[1]
    assert len(columns) == 1  # the third has no detections
    assert all(height == pytest.approx(full, abs=0.2) for height in columns.values())  # SVG is rounded
    assert "1G: true positive 50.0 %" in chart and "2G: background 100.0 %" in chart


def test_columns_of_bins_are_as_high_as_their_figures():
    truth = {"v": video("v", (0, 5, "run"), (10, 19, "run"), duration=20.0)}
    metrics = measured(truth, {"v": [found(0, 5, "run", 0.9)]})
    entries = metrics["diagnosis"]["characteristics"]
    chart = bins_chart(entries, "false_negatives", 0.5, title="missed")
    scale = value_axis([100, 50], 246, 28)
    heights = {round(float(box["height"]), 1) for box in rectangles(chart) if box.get("class") == "column"}
    # the short one is found, the long one missed; both are in one bin of length and of instances
    assert heights == {round(scale(0) - scale(value), 1) for value in (0, 50, 100)}
    assert "coverage M (0.4, 0.6]: 100.0 %, 1 true actions" in chart


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_section_is_whole_and_every_mark_lies_inside(seed):
    page = error_section(measured(*random_case(seed)))
    assert page.count("<svg") == page.count("</svg>") == 6
    assert "nan" not in page and "None" not in page
    for box in rectangles(page):
        assert float(box["height"]) >= 0
        assert float(box["x"]) >= 0 and float(box["x"]) + float(box["width"]) <= 560


def test_the_section_stands_without_a_detection_or_a_duration():
    page = error_section(measured({"v": video("v", (0, 10, "run"), duration=None)}, {}))
    assert page.count("<svg") == 6 and "nan" not in page
