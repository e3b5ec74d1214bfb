"""Proposals only: segments without classes, suppressed together, compared with all actions as one class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from train.eval import main
from train.evaluation.proposals import are_proposals
from train.postprocess import PostSettings, RawWindow, postprocess_video
from train.raw_outputs import write_raw

CLASSES = ["jump", "run"]
ONLY = PostSettings(proposals_only=True, nms="hard", nms_tiou=0.5)


def window() -> RawWindow:
    """Two proposals of one place and different classes, one elsewhere."""
    return RawWindow(
        key="a",
        window=(0.0, 10.0),
        duration=10.0,
        num_steps=10,
        segments=np.array([[1, 4], [1, 4.2], [6, 9]], dtype=np.float32),
        quality=np.array([0.9, 0.8, 0.5], dtype=np.float32),
        class_scores=np.array([[0.1, 0], [0, 0.9], [0.2, 0.3]], dtype=np.float32),
        boundary=np.ones((2, 10), dtype=np.float32),
    )


def test_proposals_are_suppressed_whatever_their_class_and_scored_by_quality():
    found = postprocess_video([window()], CLASSES, ONLY)
    assert [entry["segment"] for entry in found] == [[1.0, 4.0], [6.0, 9.0]]
    assert [entry["score"] for entry in found] == pytest.approx([0.9, 0.5])
    assert {entry["label"] for entry in found} == {"proposal"} and are_proposals({"a": found, "b": []})
    with_classes = postprocess_video([window()], CLASSES, PostSettings())
    assert not are_proposals({"a": with_classes}) and not are_proposals({"a": []})


def test_external_scores_contradict_them():
    with pytest.raises(ValueError, match="post.proposals_only: they have no class"):
        postprocess_video([window()], CLASSES, ONLY, external_scores={"a": {"jump": 1.0}})


def test_eval_reports_recall_and_precision_of_the_segments_alone(tmp_path):
    metadata = {"subset": "validation", "videos": ["a"], "post": ONLY.model_dump(mode="json")}
    write_raw(tmp_path / "raw.h5", [window()], classes=CLASSES, metadata=metadata)
    actions = [{"segment": [1, 4], "label": "jump"}, {"segment": [6, 9], "label": "run"}]
    truth = {"database": {"a": {"subset": "validation", "duration": 10, "annotations": actions}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    given = ["--from-raw", tmp_path / "raw.h5", "--ground-truth", tmp_path / "truth.json"]
    command = [str(part) for part in [*given, "--out", tmp_path / "d.json"]]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "proposals without classes: all true actions count as one class" in result.output
    assert "AR@100 100.00" in result.output
    again = ["--detections", tmp_path / "d.json", "--ground-truth", tmp_path / "truth.json", "--json"]
    metrics = json.loads(CliRunner().invoke(main, [str(part) for part in again]).stdout)
    assert metrics["average_mAP"] == 1 and list(metrics["per_class"]) == ["proposal"]
    assert metrics["recall"]["AR"]["100"] == 1
