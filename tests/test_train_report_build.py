"""The report: whole HTML from whatever the run folder holds, honest timelines, sound charts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.annotations import Action, Video
from train.metrics import evaluate
from train.postprocess import write_detections
from train.report.build import write_report
from train.report.charts import Line, column_chart, line_chart, smoothed, spread
from train.report.page import duration_text, plural
from train.report.svg import figure, nice_step, tag, time_axis, value_axis
from train.report.timelines import (
    FEW,
    MAX_LANES,
    about_video,
    choose_videos,
    clock,
    clock_axis,
    judge,
    lanes_of,
    precision_recall,
    rows_of,
    timeline,
    video_scores,
    working_point,
)

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Counts elements and fails on one that is closed without being open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, name, attributes):
        self.seen.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, f"</{name}> closes nothing"


def parsed(text: str) -> Balance:
    page = Balance()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def found(start, end, label, score):
    return {"segment": [start, end], "label": label, "score": score}


TRUTH = {
    "good": Video("good", "validation", 30.0, (Action(0, 10, "jump"), Action(15, 25, "run"))),
    "bad": Video("bad", "validation", 400.0, (Action(100, 200, "jump"),)),
    "half": Video("half", "validation", None, (Action(0, 10, "run"), Action(20, 30, "run"))),
    "empty": Video("empty", "validation", 12.0, ()),
}
RESULTS = {
    "good": [found(0, 10, "jump", 0.9), found(15, 25, "run", 0.8), found(0, 9, "jump", 0.1)],
    "bad": [found(300, 390, "jump", 0.7)],
    "half": [found(0, 10, "run", 0.85)],
    "empty": [],
}


def write_run(folder, *, evals=1, results=RESULTS, truth=TRUTH, settings="run:\n  report_videos: 8\n"):
    folder.mkdir(exist_ok=True)
    metrics = evaluate(truth, results)
    lines = [{"event": "start", "time": 1.8e9, "step": 0, "world_size": 2, "device": "cpu"}]
    for step in range(1, 6):
        timing = {"data_seconds": 0.1, "step_seconds": 0.5, "memory_mib": 2048.0}
        parts = {"class": 1 / step, "regression": 0.5 / step}
        lines.append(
            {"event": "train", "step": step, "epoch": step / 5, "loss": 1.5 / step, "parts": parts, **timing}
        )
    lines += [{"event": "eval", "step": 5, "epoch": i + 1, "metrics": metrics} for i in range(evals)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"event": "train", "st')  # cut by a kill
    (folder / "metrics.json").write_text(json.dumps({**metrics, "seconds": {"train": 75.0, "eval": 2.5}}))
    (folder / "settings.yaml").write_text(settings)
    write_detections(folder / "detections.json", results, meta={})
    return folder


@pytest.mark.parametrize("evals", [0, 1, 2, 40])
def test_the_report_is_whole_and_needs_nothing_from_outside(tmp_path, evals):
    path = write_report(write_run(tmp_path / "my run", evals=evals), truth=TRUTH)
    assert path == tmp_path / "my run" / "report.html"
    text = path.read_text()
    page = parsed(text)
    assert "<h1>my run</h1>" in text and "2027-01-15" in text
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", text)
    assert sum(name == "svg" for name, _ in page.seen) == 4 + 6 + 3  # with accuracy, errors, videos
    assert "1 min 15 s" in text and "2.0 GiB" in text and "2 processes on cpu" in text
    assert not list(tmp_path.glob("**/*.tmp"))


def test_a_run_without_anything_but_a_log_gets_its_report(tmp_path):
    folder = write_run(tmp_path / "run", evals=0)
    for name in ("metrics.json", "detections.json", "settings.yaml"):
        (folder / name).unlink()
    text = write_report(folder, truth=TRUTH).read_text()
    parsed(text)
    assert "Loss" in text and "Accuracy" not in text
    assert "No validation was logged so far." in text and "mAP on the validation videos" not in text
    (folder / "log.jsonl").unlink()
    text = write_report(folder, truth=TRUTH).read_text()
    parsed(text)
    assert "No step and no validation was logged so far." in text and "<svg" not in text


def test_the_last_logged_evaluation_counts_where_metrics_json_is_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    assert "average mAP" in write_report(folder, truth=TRUTH).read_text()


def test_names_from_the_data_cannot_become_markup(tmp_path):
    evil = '<script>alert("1")</script>&{0}'
    truth = {evil: Video(evil, "validation", 10.0, (Action(0, 5, evil),))}
    folder = write_run(
        tmp_path / "run", truth=truth, results={evil: [found(0, 5, evil, 0.5)]}, settings=f"# {evil}\n"
    )
    text = write_report(folder, truth=truth).read_text()
    parsed(text)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_as_many_videos_are_drawn_as_the_settings_say(tmp_path):
    folder = write_run(tmp_path / "run", settings="run:\n  report_videos: 2\n")
    assert write_report(folder, truth=TRUTH).read_text().count('<figure class="video">') == 2
    folder = write_run(tmp_path / "run", settings="run:\n  report_videos: 0\n")
    assert "Detections against truth" not in write_report(folder, truth=TRUTH).read_text()


def test_of_two_hundred_classes_the_middle_is_folded_away(tmp_path):
    actions = tuple(Action(i, i + 0.5, f"class {i}") for i in range(200))
    truth = {"v": Video("v", "validation", 300.0, actions)}
    folder = write_run(tmp_path / "run", truth=truth, results={"v": [found(0, 0.5, "class 0", 0.5)]})
    text = write_report(folder, truth=truth).read_text()
    parsed(text)
    assert "160 classes between them" in text and text.count('<div class="class"') == 200


def test_nothing_found_at_all_is_a_report_too(tmp_path):
    folder = write_run(tmp_path / "run", results={key: [] for key in TRUTH})
    text = write_report(folder, truth=TRUTH).read_text()
    parsed(text)
    assert "No detection is right at this tIoU" in text


# --- verdicts -----------------------------------------------------------------------------------------------


def test_each_true_action_is_hit_once_and_by_the_best_score():
    judged = judge(TRUTH, RESULTS)
    assert judged.hit.tolist() == [True, True, False, False, True]


def test_the_working_point_is_where_f1_is_best():
    point = working_point(judge(TRUTH, RESULTS))
    # scores 0.9, 0.85, 0.8 are right, 0.7 is wrong: three of three, of five true actions
    assert (point.score, point.precision, point.recall) == (0.8, 1.0, 0.6)
    assert point.f1 == pytest.approx(0.75)
    nothing = working_point(judge(TRUTH, {}))
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_videos_are_shown_from_the_best_to_the_worst():
    judged = judge(TRUTH, RESULTS)
    scores = video_scores(judged, working_point(judged))
    np.testing.assert_allclose(scores, [1.0, 0.0, 2 / 3, np.nan])
    assert [judged.keys[i] for i in choose_videos(scores, 8)] == ["good", "half", "bad"]
    assert [judged.keys[i] for i in choose_videos(scores, 2)] == ["good", "bad"]
    assert choose_videos(scores, 0) == []


def test_detections_of_unknown_videos_lower_the_precision_and_break_nothing():
    judged = judge(TRUTH, {**RESULTS, "unknown": [found(0, 1, "jump", 0.95), found(0, 1, "fly", 0.1)]})
    assert working_point(judged).precision == 0.75
    assert video_scores(judged, working_point(judged))[0] == 1.0
    assert "fly" in judged.labels


def test_precision_never_falls_towards_less_recall():
    points = precision_recall(judge(TRUTH, RESULTS))
    precision = [p for _, p in points]
    assert precision == sorted(precision, reverse=True)
    assert points[-1][0] == pytest.approx(60)
    assert precision_recall(judge(TRUTH, {})) == []


def test_a_timeline_has_a_band_for_each_true_action_and_a_bar_for_each_detection_of_its_lanes():
    judged = judge(TRUTH, RESULTS)
    drawn = parsed(timeline(judged, 0, 30.0, working_point(judged)))
    kinds = [attributes.get("class") for _, attributes in drawn.seen]
    assert (kinds.count("truth"), kinds.count("hit"), kinds.count("wrong weak")) == (2, 2, 1)
    for video, key in enumerate(judged.keys):
        parsed(timeline(judged, video, TRUTH[key].duration, working_point(judged)))


def weak_case(count=200):
    """One video, one right detection of the lowest score, the others near it and wrong."""
    truth = {"v": Video("v", "validation", 100.0, (Action(40, 60, "jump"),))}
    wrong = [found(i % 90, i % 90 + 9, "run" if i % 2 else "jump", 0.02 + i * 1e-6) for i in range(count - 1)]
    return truth, {"v": [*wrong, found(40, 60, "jump", 0.019)]}


def test_of_hundreds_of_detections_the_best_are_drawn_with_those_that_are_right():
    truth, results = weak_case()
    judged = judge(truth, results)
    drawn = [row for _, rows in lanes_of(judged, 0, working_point(judged)) for row in rows]
    assert len(drawn) == FEW + 2 and judged.hit[drawn].sum() == 1
    wrong = sorted(judged.detected.scores[~judged.hit])[-FEW - 1 :]
    assert sorted(judged.detected.scores[drawn])[1:] == wrong
    about = about_video(judged, 0, 100.0, working_point(judged))
    assert about == "1 true action, 1 min 40 s, 12 of 200 detections shown"


def test_what_is_wrong_is_drawn_as_wrong_where_nothing_is_right():
    judged = judge(TRUTH, {"good": [found(26, 29, "fly", 0.5)]})
    assert '<rect class="wrong"' in timeline(judged, 0, 30.0, working_point(judged))


def test_classes_without_a_lane_are_counted():
    actions = [Action(i, i + 1, f"class {i}") for i in range(15)] + [Action(20, 21, "class 14")]
    judged = judge({"v": Video("v", "validation", 30.0, tuple(actions))}, {})
    lanes = [judged.labels[label] for label, _ in lanes_of(judged, 0, working_point(judged))]
    assert len(lanes) == MAX_LANES and "class 14" in lanes  # it has the most true actions
    assert "12 of 15 classes shown" in about_video(judged, 0, 30.0, working_point(judged))


def test_detections_of_a_lane_never_cover_each_other():
    random = np.random.default_rng(0)
    extents = [(float(left), float(width)) for left, width in random.uniform(0, 50, (40, 2))]
    rows = rows_of(extents)
    assert rows[0] == 0 and sorted(set(rows)) == list(range(max(rows) + 1))
    for row in set(rows):
        own = sorted(extent for extent, place in zip(extents, rows, strict=True) if place == row)
        assert all(left + width < after for (left, width), (after, _) in zip(own, own[1:], strict=False))


def test_a_day_of_video_has_few_marks():
    for longest in (181, 3600, 3 * 3600, 24 * 3600):
        assert 3 <= len(clock_axis(longest).ticks) <= 11


def test_bars_lie_where_their_seconds_are():
    judged = judge(TRUTH, RESULTS)
    drawn = parsed(timeline(judged, 0, 30.0, working_point(judged)))
    bands = [a for _, a in drawn.seen if a.get("class") == "truth"]
    ticks = [a for name, a in drawn.seen if name == "line" and a.get("class") == "mark"]
    left, right = float(ticks[0]["x1"]), float(ticks[-1]["x1"])  # 0 s and 30 s
    assert float(bands[0]["x"]) == pytest.approx(left, abs=0.1)
    assert float(bands[1]["x"]) == pytest.approx((left + right) / 2, abs=0.1)
    assert float(bands[0]["width"]) == pytest.approx((right - left) / 3, abs=0.1)


# --- charts -------------------------------------------------------------------------------------------------


def test_ticks_are_round_and_few():
    assert [nice_step(span, 5) for span in (1, 7, 100, 0.03)] == [0.2, 2, 20, 0.01]
    assert time_axis(0, 7, 0, 100).ticks == (0, 2, 4, 6)
    assert time_axis(20, 20, 0, 100).ticks == (20,)
    assert value_axis([0, 0], 100, 0).ticks[-1] == 1 and value_axis([1e-7], 100, 0, least=1).high == 1
    assert value_axis([0.02, 30], 100, 0, log=True).ticks == (0.01, 0.1, 1, 10, 100)


def test_names_at_the_lines_ends_do_not_overlap():
    places = spread([50, 51, 52, 10], 0, 100)
    gaps = np.diff(sorted(places))
    assert gaps.min() >= 15 and min(places) >= 0 and max(places) <= 100


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
    assert [plural(1, "class", "classes"), plural(2000, "video")] == ["1 class", "2,000 videos"]
    assert [clock(30, 60), clock(210, 400), clock(3810, 7200)] == ["30 s", "3:30", "1:03:30"]
    assert [figure(v) for v in (0, 0.312, 6.824, 93.21, 100)] == ["0", "0.31", "6.82", "93.2", "100"]
