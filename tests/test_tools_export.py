"""export: one file that predicts as its run does, wherever it lies; refusals of predict, eval and Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, refused
from tiny_run import make_shards_of, run
from untrained_run import CLASSES, checkpoint, write_videos

import leantad
from pipeline.files import file_sha256
from tools.convert_weights import main as convert_weights
from tools.export import main as export
from tools.predict import main as predict
from train.eval import main as evaluate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "mine.leantad"
    assert call(export, trained, path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.mark.ci
@pytest.mark.slow
def test_a_model_file_alone_predicts_byte_for_byte_what_its_run_predicts(trained, model, videos, tmp_path):
    """In a process and a folder of its own, with the model, the videos and nothing of the run."""
    assert call(predict, videos, "--checkpoint", trained, "--out", tmp_path / "run").exit_code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "given.leantad").write_bytes(model.read_bytes())
    hidden = trained.rename(trained.with_name("hidden"))
    try:
        arguments = [videos, "--checkpoint", "given.leantad", "--device", "cpu", "--quiet"]
        command = [sys.executable, ROOT / "tools" / "predict.py", *arguments]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    finally:
        hidden.rename(trained)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir(elsewhere)) == ["given.leantad", "predictions"]
    for name in ("detections.csv", "first.srt", "second.srt"):
        found = (elsewhere / "predictions" / name).read_bytes()
        assert found == (tmp_path / "run" / name).read_bytes() and len(found) > 1000, name
    own, other = (
        (folder / "detections.json").read_text() for folder in (tmp_path / "run", elsewhere / "predictions")
    )
    source = json.dumps(str(trained / "checkpoints" / "last"))
    assert own.count(source) == 1 and own.replace(source, '"given.leantad"') == other


@pytest.mark.slow
def test_the_size_is_printed_and_the_document_has_all_numbers(trained, tmp_path):
    result = call(export, trained, tmp_path / "a.leantad")
    size = (tmp_path / "a.leantad").stat().st_size
    folder = trained / "checkpoints" / "step_000000"
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'a.leantad'}: {size / 1e6:.1f} MB, 3 classes, from {folder}",
        f"use it with leantad predict VIDEO --checkpoint {tmp_path / 'a.leantad'}",
    ]
    result = call(export, folder, tmp_path / "b.leantad", "--json", "--quiet")
    assert json.loads(result.stdout) == {
        "out": str(tmp_path / "b.leantad"),
        "bytes": size,
        "sha256": file_sha256(tmp_path / "a.leantad"),
        "checkpoint": str(folder),
        "classes": CLASSES,
    }
    assert not result.stderr and not call(export, trained, tmp_path / "c.leantad", "-q").output


def test_a_file_that_is_there_is_replaced_with_force_only(trained, model, tmp_path):
    path = tmp_path / "mine.leantad"
    path.write_text("mine")
    assert "exists; --force replaces it" in refused(export, trained, path)
    assert path.read_text() == "mine"
    assert call(export, trained, path, "--force").exit_code == 0
    assert path.read_bytes() == model.read_bytes() and os.listdir(tmp_path) == ["mine.leantad"]


def test_what_cannot_be_exported_is_one_line(trained, model, tmp_path):
    path = tmp_path / "out" / "mine.leantad"
    assert "make it first" in refused(export, trained, path)
    path.parent.mkdir()
    assert "is a folder" in refused(export, trained, path.parent)
    assert "nowhere: no such folder, want that of a run" in refused(export, tmp_path / "nowhere", path)
    assert "no such folder" in refused(export, model, path)
    assert f"error: {tmp_path}: no model.safetensors, want a run folder" in refused(export, tmp_path, path)
    assert os.listdir(path.parent) == []


def test_eval_takes_a_model_file_with_a_data_set(model, tmp_path):
    arguments = ("--checkpoint", model, "--out", tmp_path / "d.json")
    assert "is a model without a data set; name yours with --shards" in refused(evaluate, *arguments)
    assert "nowhere: not here" in refused(evaluate, *arguments, "--shards", tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_refused_by_all_that_take_them(model, videos, tmp_path):
    path, out = tmp_path / "cut.leantad", tmp_path / "found"
    path.write_bytes(model.read_bytes()[:-100])
    arguments = ("--checkpoint", path, "--out", out)
    assert f"error: {path}: damaged, or not copied whole" in refused(predict, videos, *arguments)
    assert f"error: {path}: damaged, or not copied whole" in refused(evaluate, *arguments, "--shards", "x")
    with pytest.raises(
        ValueError, match=r"cut\.leantad: damaged, or not copied whole \(.*\); copy it again$"
    ):
        leantad.load(path)
    assert not out.exists()


@pytest.mark.slow
def test_python_takes_a_model_file(trained, model, videos, tmp_path):
    detector = leantad.load(model, device="cpu", quiet=True)
    assert detector.checkpoint == model and detector.classes == tuple(CLASSES)
    detections = detector(videos)
    assert list(detections) == list(leantad.load(str(trained), device="cpu", quiet=True)(videos))
    assert len(detections) == 200 and str(model) in repr(detector)
    with pytest.raises(ValueError, match="without a data set"):
        leantad.evaluate(model)


@pytest.mark.slow
def test_thresholds_per_class_come_with_the_model(trained, model, videos, tmp_path):
    options = ("--auto-threshold", "--quiet", "--out")
    lacking = refused(predict, videos / "second.webm", "--checkpoint", model, *options, tmp_path / "a")
    assert "these weights were not validated" in lacking
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained / "checkpoints" / "last", folder)
    scores = [
        entry.score for entry in leantad.load(trained, device="cpu", quiet=True)(videos / "second.webm")
    ]
    classes = {name: {"score": scores[number], "f1": 0.5} for name, number in (("jump", 10), ("run", 40))}
    thresholds = {"subset": "validation", "overall": {"score": scores[60], "f1": 0.5}, "classes": classes}
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    assert call(export, folder, tmp_path / "given.leantad").exit_code == 0
    for name in ("checkpoint", "given.leantad"):
        source = ("--checkpoint", tmp_path / name, "--device", "cpu")
        done = call(predict, videos / "second.webm", *source, *options, tmp_path / f"of {name}")
        assert done.exit_code == 0, done.output
    csv, given = (tmp_path / f"of {name}" / "detections.csv" for name in ("checkpoint", "given.leantad"))
    assert csv.read_bytes() == given.read_bytes() and 10 < len(csv.read_text().splitlines()) < 62
    detected = leantad.load(tmp_path / "given.leantad", device="cpu", quiet=True)
    assert (
        len(detected(videos / "second.webm", auto_threshold=True)) == len(given.read_text().splitlines()) - 1
    )


def test_the_backbone_of_a_given_model_can_be_trained_on(trained, model, tmp_path):
    results = []
    for name, source in (("run", trained / "checkpoints/last/model.safetensors"), ("file", model)):
        options = ("--backbone", "r2plus1d_tiny", "--source", "leantad")
        done = call(convert_weights, source, *options, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        results.append((tmp_path / name).read_bytes()[-10_000:])  # behind the metadata, which name the file
    assert results[0] == results[1]


@pytest.mark.ci
@pytest.mark.slow
def test_evaluating_a_model_file_gives_what_its_run_gives(tmp_path):
    shards = make_shards_of(tmp_path)
    assert run(shards, tmp_path / "run", run__epochs=1).exit_code == 0
    assert call(export, tmp_path / "run", tmp_path / "mine.leantad").exit_code == 0
    found = []
    for source in ("run", "mine.leantad"):
        out = tmp_path / f"{source}.json"
        options = ("--shards", shards, "--out", out, "--json")
        done = call(evaluate, "--checkpoint", tmp_path / source, *options)
        assert done.exit_code == 0, done.output
        found.append((json.loads(done.stdout), json.loads(out.read_text())["results"]))
    assert found[0] == found[1] and found[0][0]["average_mAP"] >= 0
    metrics = leantad.evaluate(tmp_path / "mine.leantad", shards=shards, quiet=True)
    assert json.loads(json.dumps(metrics)) == found[0][0]
