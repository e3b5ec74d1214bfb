"""The report's section on errors: its columns add up, say what the numbers say, and stay inside the image."""

from __future__ import annotations

import re

import pytest
from metric_cases import found, random_case, video

from train.evaluation.evaluate import evaluate
from train.report.charts import BOTTOM, HEIGHT, TOP, WIDTH
from train.report.diagnosis_charts import bin_text, bins_chart, profile_chart
from train.report.errors import error_section
from train.report.svg import value_axis


def measured(ground_truth, detections):
    return evaluate(ground_truth, detections, tiou=(0.5, 0.75), protocol="activitynet", diagnosis=True)


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
    ground_truth = {"v": video("v", (0, 5, "run"), (10, 19, "run"), duration=20.0)}
    metrics = measured(ground_truth, {"v": [found(0, 5, "run", 0.9)]})
    entries = metrics["diagnosis"]["characteristics"]
    chart = bins_chart(entries, "false_negatives", 0.5, title="missed")
    scale = value_axis([100, 50], HEIGHT - BOTTOM, TOP + 14)
    heights = {round(float(box["height"]), 1) for box in rectangles(chart) if box.get("class") == "column"}
    # the short one is found, the long one missed; both are in one bin of length and of instances
    assert heights == {round(scale(0) - scale(value), 1) for value in (0, 50, 100)}
    assert "coverage M, 40 to 60 %: 100.00 %, 1 true action<" in chart


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_section_is_whole_and_every_mark_lies_inside(seed):
    page = error_section(measured(*random_case(seed)))
    assert page.count("<svg") == page.count("</svg>") == 6
    assert "nan" not in page and "None" not in page
    for box in rectangles(page):
        assert float(box["height"]) >= 0
        assert float(box["x"]) >= 0 and float(box["x"]) + float(box["width"]) <= WIDTH


def test_the_section_stands_without_a_detection_or_a_duration():
    page = error_section(measured({"v": video("v", (0, 10, "run"), duration=None)}, {}))
    assert page.count("<svg") == 6 and "nan" not in page


def test_an_axis_of_nothing_has_marks_that_can_be_read():
    page = error_section(measured({"v": video("v", (0, 10, "run"), duration=20.0)}, {}))
    assert ">1 %<" in page and not re.search(r"\de-\d", page)


def test_small_figures_over_columns_are_not_rounded_to_nothing():
    entries = {"length": {"bins": [one_bin(0, 3, share) for share in (0.0, 0.003, 0.068, 1.0)]}}
    chart = bins_chart(entries, "false_negatives", 0.5, title="missed")
    assert re.findall(r'<text class="value"[^>]*>([^<]*)<', chart) == ["0", "0.3", "6.8", "100"]
    assert chart.index('class="cut"') < chart.index('class="value"')  # so that no line crosses a figure


def one_bin(low, high, share):
    return {"name": "S", "low": low, "high": high, "num_true": 1, "false_negatives": share}


def test_ranges_of_bins_read_well():
    texts = [
        bin_text("coverage", one_bin(0.004214, 0.02386, 0)),
        bin_text("length", one_bin(18, None, 0)),
        bin_text("length", one_bin(1234.5678, 20_000, 0)),
        bin_text("instances", one_bin(0, 1, 0)),
        bin_text("instances", one_bin(1, 4, 0)),
    ]
    assert texts == ["0.421 to 2.39 %", "over 18 s", "1230 to 20k s", "1", "2 to 4"]


def test_the_table_of_bins_names_each_range_and_how_many_actions_it_has():
    ground_truth = {"v": video("v", (0, 5, "run"), (10, 19, "run"), duration=20.0)}
    page = error_section(measured(ground_truth, {}))
    assert "<td>20 to 40 % <small>(1)</small></td>" in page and page.count("<tr>") == 6
