"""Whole runs with ETAD's detector: as released and with class scores, resized to a width and a height."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_run import make_shards_of, run

from train.eval import main as evaluate

SMALL = {
    "detector__kind": "etad",
    "detector__neck_dim": 16,
    "detector__fc_dim": 16,
    "detector__head_dim": 16,
    "detector__roi_bins": 8,
    "data__resize": [24, 18],
    "post__boundary_peaks": True,
    "optimizer__schedule": "step",
}


@pytest.mark.ci
@pytest.mark.slow
def test_it_trains_says_that_it_knows_no_classes_and_evaluates_with_external_scores(tmp_path):
    shards, out = make_shards_of(tmp_path / "tiny"), tmp_path / "run"
    done = run(shards, out, **SMALL)
    assert done.exit_code == 0, done.output
    assert "etad knows no classes" in done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    detections = ["--out", str(tmp_path / "detections.json"), "--raw", str(tmp_path / "raw.h5")]
    result = CliRunner().invoke(evaluate, ["--checkpoint", str(out), "--json", "--quiet", *detections])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["average_mAP"] == metrics["average_mAP"]
    found = json.loads((tmp_path / "detections.json").read_text())["results"]
    labels = {entry["label"] for entries in found.values() for entry in entries}
    (tmp_path / "scores.json").write_text(json.dumps({key: {min(labels): 0.9} for key in found}))
    options = ["--from-raw", str(tmp_path / "raw.h5"), "--external-scores", str(tmp_path / "scores.json")]
    named = CliRunner().invoke(evaluate, [*options, "--out", str(tmp_path / "named.json")])
    assert named.exit_code == 0, named.output
    found = json.loads((tmp_path / "named.json").read_text())["results"]
    assert {entry["label"] for entries in found.values() for entry in entries} == {min(labels)}


@pytest.mark.ci
@pytest.mark.slow
def test_with_class_scores_it_is_silent(tmp_path):
    own = {"detector__etad__class_scores": True, "detector__etad__step_shortcut": True}
    done = run(make_shards_of(tmp_path / "tiny"), tmp_path / "run", **SMALL, **own, run__epochs=1)
    assert done.exit_code == 0 and "knows no classes" not in done.stderr, done.output
