"""All measures together: what `leantad eval` prints and writes with --diagnose and --bootstrap."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from metric_cases import found, random_case, video

from train.eval import main
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.evaluate import evaluate
from train.evaluation.tables import TITLES, format_metrics


def test_the_map_is_that_of_evaluate_and_the_rest_comes_on_request():
    truth, detections = random_case(3)
    metrics = evaluate(truth, detections, tiou=(0.5, 0.75), protocol="activitynet")
    plain = mean_average_precision(truth, detections, tiou=(0.5, 0.75))
    assert {key: metrics[key] for key in plain} == plain
    assert set(metrics) - set(plain) == {"recall"}
    text = format_metrics(metrics)
    assert "AR@100" in text and "AUC" in text and "low" not in text and "background" not in text


def test_everything_asked_for_stands_in_the_tables():
    truth, detections = random_case(3)
    metrics = evaluate(
        truth, detections, tiou=(0.3, 0.5), protocol="thumos", diagnosis=True, bins="thumos", resamples=10
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    lines = format_metrics(metrics).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["tIoU", "mAP", "low", "high"]
    assert "10 resamples of the videos (seed 0)" in lines[4]
    for title in TITLES.values():
        assert sum(line.startswith(title) for line in lines) == 2
    assert sum(" .. " in line for line in lines) == len(TITLES)
    assert sum(line.startswith(("coverage", "length", "instances")) for line in lines) == 3
    assert max(map(len, lines)) < 200
    classes = lines[-len(metrics["per_class"]) :]
    assert {line.split()[0] for line in classes} == set(metrics["per_class"])
    averages = [float(line.split()[2]) for line in classes]
    assert averages == sorted(averages, reverse=True)


def test_tables_are_whole_without_a_single_detection():
    truth = {"v": video("v", (0, 10, "run"), duration=None)}
    metrics = evaluate(truth, {}, tiou=(0.5,), protocol="activitynet", diagnosis=True, resamples=3)
    text = format_metrics(metrics)
    assert any(line.split()[:2] == ["all", "0.0"] and "100.0" in line for line in text.splitlines())  # missed
    assert "nan" not in text


def test_eval_prints_the_diagnosis_and_writes_it_with_the_metrics(tmp_path):
    lines = ["video,start,end,label,subset", *(f"v{number},0,10,run,validation" for number in range(6))]
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    results = {f"v{number}": [found(0, 10, "run", 0.9), found(0, 3, "run", 0.8)] for number in range(6)}
    (tmp_path / "found.json").write_text(json.dumps({"results": results}))
    options = ["--detections", str(tmp_path / "found.json"), "--ground-truth", str(tmp_path / "truth.csv")]
    printed = CliRunner().invoke(main, [*options, "--diagnose", "--bootstrap", "4"])
    assert printed.exit_code == 0, printed.output
    assert "localisation" in printed.stdout and "AR@100 100.00 [100.00, 100.00]" in printed.stdout
    asked = CliRunner().invoke(main, [*options, "--diagnose", "--bootstrap", "4", "--json"])
    metrics = json.loads(asked.stdout)
    assert metrics["diagnosis"]["top"]["share"]["localisation"] == pytest.approx(0.5)
    assert metrics["intervals"]["resamples"] == 4
    assert metrics["recall"]["AR"]["100"] == 1


def test_a_single_resample_is_refused():
    result = CliRunner().invoke(main, ["--detections", "x.json", "--ground-truth", "y", "--bootstrap", "1"])
    assert result.exit_code == 2 and "bootstrap" in result.stderr
