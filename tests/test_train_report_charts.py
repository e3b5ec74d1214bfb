"""The report's charts: round marks, names apart, few points, nothing that is not finite."""

from __future__ import annotations

import re

import numpy as np
from report_cases import parsed

from pipeline.text import duration_text
from train.report.charts import Line, column_chart, line_chart, smoothed, spread
from train.report.svg import log_axis, nice_step, range_axis, tag, value_axis, value_text


def test_ticks_are_round_and_few():
    assert [nice_step(span, 5) for span in (1, 7, 100, 0.03)] == [0.2, 2, 20, 0.01]
    assert range_axis(0, 7, 0, 100).ticks == (0, 2, 4, 6)
    assert range_axis(20, 20, 0, 100).ticks == (20,)
    assert value_axis([0, 0], 100, 0).ticks[-1] == 1 and value_axis([1e-7], 100, 0, min_high=1).high == 1
    assert log_axis([0.02, 30], 100, 0).ticks == (0.01, 0.1, 1, 10, 100)


def test_names_at_the_lines_ends_do_not_overlap():
    positions = spread([50, 51, 52, 10], 0, 100)
    gaps = np.diff(sorted(positions))
    assert gaps.min() >= 15 and min(positions) >= 0 and max(positions) <= 100


def test_the_longest_name_of_a_loss_has_room_at_its_lines_end():
    lines = [Line(name, [(0, 1.0), (9, 2.0)]) for name in ("total", "proposal_boundary")]
    drawn = line_chart(lines, x_label="step", title="loss")
    starts = [float(x) for x in re.findall(r'class="name" x="([\d.]+)"', drawn)]
    # 128.5 pixels in DejaVu Sans at 13.5, of small screens, measured in Chromium
    assert len(starts) == 2 and max(starts) + 128.5 <= 480


def test_points_that_are_not_finite_are_left_out():
    line = Line("loss", [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)])
    chart = line_chart([line], x_label="step", title="loss")
    parsed(chart)
    assert "nan" not in chart and "inf" not in chart
    assert line_chart([Line("loss", [(1, float("nan"))])], x_label="step", title="t").startswith("<p")


def test_one_point_is_a_dot():
    assert "<circle" in line_chart([Line("mAP", [(3, 50.0)])], x_label="epoch", title="mAP")


def test_columns_without_room_lose_their_texts_but_not_their_numbers():
    chart = column_chart([(f"{i}", float(i)) for i in range(50)], x_label="tIoU", title="mAP")
    assert chart.count('class="column"') == 50 and 'class="value"' not in chart
    assert "<title>49: 49.00</title>" in chart


def test_a_running_mean_keeps_few_points_as_they_are():
    assert smoothed([(0, 1.0), (1, 3.0), (2, 5.0)], 2) == [(0, 1.0), (1, 2.0), (2, 4.0)]
    assert smoothed([], 1) == []


def test_a_long_curve_keeps_its_end_and_few_points():
    curve = smoothed([(i, float(i)) for i in range(9001)], 3)
    assert len(curve) <= 300 and curve[-1] == (9000, 8999.0)


def test_elements_escape_what_they_are_given():
    assert tag("rect", class_="a", stroke_width=1.5, x=None, title="<&>") == (
        '<rect class="a" stroke-width="1.5"><title>&lt;&amp;&gt;</title></rect>'
    )


def test_durations_and_counts_read_well():
    assert [duration_text(s) for s in (4.25, 192, 3900)] == ["4.2 s", "3 min 12 s", "1 h 05 min"]
    assert [value_text(v) for v in (0, 0.312, 6.824, 93.21, 100)] == ["0", "0.31", "6.82", "93.2", "100"]
