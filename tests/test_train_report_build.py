"""The report: whole HTML from whatever the run folder holds."""

from __future__ import annotations

import json
import re

import pytest
from metric_cases import found
from report_cases import GROUND_TRUTH, RESULTS, parsed

from pipeline.annotations import Action, Video
from train.detections import write_detections
from train.evaluation.average_precision import mean_average_precision
from train.report.build import write_report


def write_run(
    folder, *, evals=1, results=RESULTS, ground_truth=GROUND_TRUTH, settings="run:\n  report_videos: 8\n"
):
    folder.mkdir(exist_ok=True)
    metrics = mean_average_precision(ground_truth, results)
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
    write_detections(folder / "detections.json", results, metadata={})
    return folder


@pytest.mark.parametrize("evals", [0, 1, 2, 40])
def test_the_report_is_whole_and_needs_nothing_from_outside(tmp_path, evals):
    path = write_report(write_run(tmp_path / "my run", evals=evals), ground_truth=GROUND_TRUTH)
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
    text = write_report(folder, ground_truth=GROUND_TRUTH).read_text()
    parsed(text)
    assert "Loss" in text and "Accuracy" not in text
    assert "No validation was logged so far." in text and "mAP on the validation videos" not in text
    (folder / "log.jsonl").unlink()
    text = write_report(folder, ground_truth=GROUND_TRUTH).read_text()
    parsed(text)
    assert "No step and no validation was logged so far." in text and "<svg" not in text


def test_the_last_logged_evaluation_counts_where_metrics_json_is_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    assert "average mAP" in write_report(folder, ground_truth=GROUND_TRUTH).read_text()


def test_names_from_the_data_cannot_become_markup(tmp_path):
    evil = '<script>alert("1")</script>&{0}'
    ground_truth = {evil: Video(evil, "validation", 10.0, (Action(0, 5, evil),))}
    folder = write_run(
        tmp_path / "run",
        ground_truth=ground_truth,
        results={evil: [found(0, 5, evil, 0.5)]},
        settings=f"# {evil}\n",
    )
    text = write_report(folder, ground_truth=ground_truth).read_text()
    parsed(text)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_template_syntax_in_names_stays_text(tmp_path):
    evil = "{{7*7000}}{% raw %}<script>{{ name }}"
    ground_truth = {evil: Video(evil, "validation", 10.0, (Action(0, 5, evil),))}
    results = {evil: [found(0, 5, evil, 0.5)]}
    folder = write_run(
        tmp_path / "{{7*7000}}", ground_truth=ground_truth, results=results, settings=f"# {evil}\n"
    )
    text = write_report(folder, ground_truth=ground_truth).read_text()
    parsed(text)
    assert "<h1>{{7*7000}}</h1>" in text and "49000" not in text
    assert "<script" not in text and "{{7*7000}}{% raw %}&lt;script&gt;{{ name }}" in text


def test_as_many_videos_are_drawn_as_the_settings_say(tmp_path):
    folder = write_run(tmp_path / "run", settings="run:\n  report_videos: 2\n")
    assert write_report(folder, ground_truth=GROUND_TRUTH).read_text().count('<figure class="video">') == 2
    folder = write_run(tmp_path / "run", settings="run:\n  report_videos: 0\n")
    assert "Detections against truth" not in write_report(folder, ground_truth=GROUND_TRUTH).read_text()


def test_of_two_hundred_classes_the_middle_is_folded_away(tmp_path):
    actions = tuple(Action(i, i + 0.5, f"class {i}") for i in range(200))
    ground_truth = {"v": Video("v", "validation", 300.0, actions)}
    folder = write_run(
        tmp_path / "run", ground_truth=ground_truth, results={"v": [found(0, 0.5, "class 0", 0.5)]}
    )
    text = write_report(folder, ground_truth=ground_truth).read_text()
    parsed(text)
    assert "160 classes between them" in text and text.count('<div class="class"') == 200


def test_nothing_found_at_all_is_a_report_too(tmp_path):
    folder = write_run(tmp_path / "run", results={key: [] for key in GROUND_TRUTH})
    text = write_report(folder, ground_truth=GROUND_TRUTH).read_text()
    parsed(text)
    assert "No detection is right at this tIoU" in text
