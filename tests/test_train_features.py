"""Whole runs on features: exact resume, evaluation, two ranks, and files that do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner
from feature_cases import SETTINGS, WIDTH, feature_file
from safetensors.torch import save_file
from tiny_run import assert_same_weights, run, start, weights

from model.detector.proposal_detector import ProposalDetector
from pipeline.features.dataset import FeatureDataset
from tools.cli import main as leantad
from tools.prediction.features import find_inputs, predict_features
from train import loop
from train.cli import Output
from train.data import open_data
from train.eval import main as evaluate
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.class_thresholds import choose_thresholds, read_thresholds
from train.loop import train_step
from train.settings import Settings, load_settings

ACTIONFORMER = {
    "detector__kind": "actionformer",
    "detector__actionformer__embed_dim": 16,
    "detector__actionformer__head_dim": 16,
    "detector__actionformer__max_distances": [4, 8],
    "detector__actionformer__attention_windows": [5],
}


def evaluated(run_folder: Path, out: Path, *options: str):
    arguments = ["--checkpoint", str(run_folder), "--json", "--quiet", "--out", str(out), *options]
    return CliRunner().invoke(evaluate, arguments)


def interrupted_step(run, batches, *, interrupted):
    """A step after which the run saves and stops."""
    result = train_step(run, batches, interrupted=interrupted)
    os.kill(os.getpid(), signal.SIGTERM)
    return result


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("features") / "f.h5")


@pytest.fixture(scope="module")
def whole(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run(features, out, **SETTINGS, run__checkpoint_every=1)
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.slow
def test_a_run_on_features_resumes_exactly(features, whole, tmp_path, monkeypatch):
    cut, options = tmp_path / "cut", {**SETTINGS, "run__checkpoint_every": 1}
    loss, calls = ProposalDetector.loss, []

    def failing(self, *args, **values):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("power is gone")
        return loss(self, *args, **values)

    with monkeypatch.context() as patched:
        patched.setattr(ProposalDetector, "loss", failing)
        assert run(features, cut, **options).exit_code != 0
    again = run(features, cut, "--resume", **options)
    assert again.exit_code == 0, again.output
    assert_same_weights(whole, cut)
    assert not [name for name in weights(whole) if name.startswith("encoder")]


@pytest.mark.slow
def test_evaluation_repeats_the_validation_and_names_the_video_without_features(whole, tmp_path):
    metrics = json.loads((whole / "metrics.json").read_text())
    result = evaluated(whole, tmp_path / "d.json")
    assert result.exit_code == 1 and "gone" in result.stderr, result.output  # one could not be read
    assert json.loads(result.stdout)["average_mAP"] == metrics["average_mAP"]
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    step = next(event for event in log if event["event"] == "train")
    assert (
        step["beta"] is None
        and step["clip_ratio"] == 1.0
        and "features of width 12" in (whole / "report.html").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "f" * 64}, "made otherwise than those that the weights were trained on"),
        ({"stride_frames": 8}, "stride_frames 8 here, None there"),
    ],
)
def test_features_made_otherwise_are_refused(whole, tmp_path, change, message):
    other = feature_file(tmp_path / "other.h5", **change)
    result = evaluated(whole, tmp_path / "d.json", "--shards", str(other))
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "d.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "another one"}, "backbone 'another one' here, 'made up' there"),
        ({"train": 10}, "windows, the run began with "),
        ({"backbone": None}, None),  # a checkpoint of an earlier version, which kept neither
    ],
)
def test_a_run_is_not_resumed_on_features_that_were_made_again_otherwise(whole, tmp_path, change, message):
    out, path = tmp_path / "run", feature_file(tmp_path / "f.h5")
    options = {**SETTINGS, "run__checkpoint_every": 1}
    shutil.copytree(whole, out, symlinks=True)
    settings = out / "settings.yaml"
    here = yaml.safe_load(settings.read_text())
    here["data"]["shards"] = str(path)
    settings.write_text(yaml.safe_dump(here))
    last = out / "checkpoints" / "last"
    assert run(path, out, "--resume", **options).exit_code == 0  # it has only moved
    feature_file(path, **change)
    if message is None:
        progress = json.loads((last / "progress.json").read_text())
        del progress["samples"]
        (last / "progress.json").write_text(json.dumps(progress))
        (last / "packing.json").unlink()
    before = (last / "model.safetensors").stat().st_mtime_ns
    result = run(path, out, "--resume", **options)
    assert result.exit_code == (2 if message else 0), result.output
    if message:
        assert message in result.stderr and result.stderr.count("\n") == 1
    assert (last / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        {"data.min_action_seconds": 1000},
        {"data.window_seconds": 0.5, "data.min_action_overlap": 1},  # no action is so short
    ],
)
def test_windows_without_a_single_action_are_refused_before_the_first_step(features, change):
    def settings(**more: object) -> Settings:
        values = {"data.shards": str(features), "data.num_features": WIDTH, **more}
        return load_settings(Path("demo"), [f"{name}={value}" for name, value in values.items()])

    assert open_data(settings()).classes == ("jump", "run")
    with pytest.raises(ValueError, match="training windows? holds an action to learn from") as raised:
        open_data(settings(**change))
    (line,) = str(raised.value).splitlines()
    assert all(f"{name}={float(value)}" in line for name, value in change.items())
    assert all(f"data.{n}=" in line for n in ("min_action_seconds", "window_seconds", "min_action_overlap"))


@pytest.mark.slow
def test_an_epoch_is_a_pass_where_accumulation_does_not_divide_it_and_such_a_run_resumes_exactly(
    tmp_path, monkeypatch
):
    path, seen = feature_file(tmp_path / "f.h5", train=7), Counter()
    options = {
        **SETTINGS,
        "data__window_seconds": "null",
        "optimizer__batch_size": 1,
        "optimizer__accumulation_steps": 4,
        "run__epochs": 3,
        "run__eval_every": 1,
        "run__checkpoint_every": 1,
    }

    def watched(run, batches, *, interrupted):
        seen.update(key for batch in batches for key in batch.keys)
        result = train_step(run, batches, interrupted=interrupted)
        if run.folder.name == "cut" and run.progress.step == 3:  # within the second pass
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    result = run(path, tmp_path / "whole", quiet=False, **options)
    assert result.exit_code == 0 and "2 steps an epoch, 6 in all" in result.stdout, result.output
    assert len(seen) == 7 and min(seen.values()) == 3 and seen.total() == 24
    events = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in events if e["event"] == "train"] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [e["epoch"] for e in events if e["event"] == "eval"] == [1, 2, 3]
    assert run(path, tmp_path / "cut", **options).exit_code == 130
    assert run(path, tmp_path / "cut", "--resume", **options).exit_code == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_shorter_epochs(tmp_path, monkeypatch):
    path, out = feature_file(tmp_path / "f.h5", train=7), tmp_path / "run"
    options = {
        **SETTINGS,
        "data__window_seconds": "null",
        "optimizer__batch_size": 1,
        "optimizer__accumulation_steps": 4,
        "run__epochs": 3,
    }
    monkeypatch.setattr(loop, "train_step", interrupted_step)
    assert run(path, out, **options).exit_code == 130
    progress = out / "checkpoints" / "last" / "progress.json"
    stated = json.loads(progress.read_text())
    assert stated.pop("samples") == 7
    progress.write_text(json.dumps(stated))
    for _ in range(2):
        resumed = run(path, out, "--resume", quiet=False, **options)
        assert resumed.exit_code == 130 and "1 step an epoch, 3 in all" in resumed.stdout, resumed.output


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0, 0.5])
@pytest.mark.parametrize("stop", [13, 16])  # of 16 steps
def test_the_best_weights_are_measured_anew_and_stay_until_others_are_better(
    features, tmp_path, monkeypatch, decay, stop
):
    out = tmp_path / "run"
    options = {
        **SETTINGS,
        "data__window_seconds": "null",
        "optimizer__batch_size": 1,
        "optimizer__detector_lr": 0.01,  # so high that the last weights are not the best
        "optimizer__schedule": "constant",
        "optimizer__ema_decay": decay,
        "run__epochs": 4,
        "run__eval_every": 1,
    }

    def stopping(run, batches, *, interrupted):
        result = train_step(run, batches, interrupted=interrupted)
        if run.progress.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        assert run(features, out, **options).exit_code == 130
    checkpoints = out / "checkpoints"
    best = checkpoints / os.readlink(checkpoints / "best")
    assert best.name == "step_000012", "choose another seed: the last weights are the best"
    changed = ("--set", "run.protocol=thumos", "--set", "post.sigma=0.4")
    resumed = CliRunner().invoke(leantad, ["train", "--out", str(out), "--resume", "--quiet", *changed])
    assert resumed.exit_code == 0, resumed.output
    assert os.readlink(checkpoints / "best") == best.name != os.readlink(checkpoints / "last")
    assert evaluated(out, tmp_path / "d.json").exit_code == 1  # under the settings that it states
    found = json.loads((tmp_path / "d.json").read_text())
    stated = yaml.safe_load((best / "settings.yaml").read_text())
    assert (stated["run"]["protocol"], stated["post"]["sigma"]) == ("thumos", 0.4)
    ground_truth = FeatureDataset.open(features).ground_truth("validation")
    want = mean_average_precision(ground_truth, found["results"], protocol="thumos")["average_mAP"]
    last = json.loads((checkpoints / "last" / "progress.json").read_text())
    assert last["metrics"]["average_mAP"] < last["best"] == want
    assert read_thresholds(best) == choose_thresholds(ground_truth, found["results"], subset="validation")


@pytest.mark.slow
def test_the_last_weights_become_the_best_if_they_are_by_the_new_measure(features, whole, tmp_path):
    out, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    shutil.copytree(whole, out, symlinks=True)
    last, worse = os.readlink(checkpoints / "last"), checkpoints / "step_000001"
    shutil.copytree(checkpoints / last, worse)
    zeros = {name: torch.zeros_like(value) for name, value in weights(out).items()}
    save_file(zeros, worse / "model.safetensors")
    (checkpoints / "best").unlink()
    (checkpoints / "best").symlink_to(worse.name)
    changed = {**SETTINGS, "run__checkpoint_every": 1, "run__protocol": "thumos"}
    resumed = run(features, out, "--resume", **changed)
    assert resumed.exit_code == 0, resumed.output
    assert os.readlink(checkpoints / "best") == os.readlink(checkpoints / "last") == last
    assert {path.name for path in checkpoints.iterdir()} == {"best", "last", last}


@pytest.mark.slow
def test_a_validation_of_checkpoints_on_another_disk_tidies_there_and_nowhere_else(features, whole, tmp_path):
    out, disk = tmp_path / "run", tmp_path / "disk"
    shutil.copytree(whole, out, symlinks=True)
    (out / "checkpoints").rename(disk)
    (out / "checkpoints").symlink_to(disk)
    shutil.copytree(disk / os.readlink(disk / "last"), disk / "step_000001")  # the best until now
    (disk / "best").unlink()
    (disk / "best").symlink_to("step_000001")
    progress = disk / "last" / "progress.json"
    due = {**json.loads(progress.read_text()), "validation_due": True, "best": -1.0}
    progress.write_text(json.dumps(due))
    of_another = tmp_path / "checkpoints" / ".step_000009.tmp"  # of a run beside it, being written
    of_another.mkdir(parents=True)
    resumed = run(features, out, "--resume", **{**SETTINGS, "run__checkpoint_every": 1})
    assert resumed.exit_code == 0, resumed.output
    assert of_another.is_dir()
    assert {path.name for path in disk.iterdir()} == {"best", "last", os.readlink(disk / "last")}


@pytest.mark.slow
def test_predict_and_an_exported_model_give_the_detections_of_eval(features, whole, tmp_path):
    one = ("--set", "optimizer.batch_size=1")  # as predict, so that sums are added in the same order
    assert evaluated(whole, tmp_path / "d.json", *one).exit_code == 1
    want = json.loads((tmp_path / "d.json").read_text())["results"]
    model = tmp_path / "m.leantad"
    done = CliRunner().invoke(leantad, ["export", str(whole), str(model)])
    assert done.exit_code == 0, done.output
    assert f"use it with leantad predict FEATURES.h5 --checkpoint {model}\n" in done.output
    for name, checkpoint in (("a", whole), ("b", model)):
        out = tmp_path / name
        arguments = ["predict", str(features), "--checkpoint", str(checkpoint), "--out", str(out), "--quiet"]
        done = CliRunner().invoke(leantad, arguments)
        assert done.exit_code == 1 and "gone: no video stream" in done.stderr, done.output
        found = json.loads((out / "detections.json").read_text())["results"]
        assert {key: found[key] for key in want if key != "gone"} == {
            key: want[key] for key in want if key != "gone"
        }
        assert set(found) >= {f"v{number}" for number in range(6)}, "the videos of all subsets"


def test_predict_hands_on_the_name_and_file_that_a_feature_file_states(tmp_path, monkeypatch):
    path = feature_file(tmp_path / "f.h5", train=1, val=0, name="day {}.mp4", file="in/{}.mp4")
    monkeypatch.setattr("train.inference.detect_in", lambda trained, source, **_: {source.video.key: []})
    trained = SimpleNamespace(settings=SimpleNamespace(data=SimpleNamespace(num_features=WIDTH)), packing={})
    found = predict_features(trained, find_inputs([path]), output=Output(quiet=True))
    assert [video.stated for video in found] == [
        {"source": "day 0.mp4", "file": "in/0.mp4"},
        {"source": "gone"},  # which has no features
    ]


@pytest.mark.slow
def test_predict_says_what_a_detector_of_features_wants(whole, tmp_path):
    video, out = tmp_path / "match.mp4", str(tmp_path / "out")
    video.write_bytes(b"")
    other = feature_file(tmp_path / "other.h5", stride_frames=8)
    for given, message in (
        ([video], "was trained on features; give it a feature file (.h5), leantad extract-features makes"),
        ([video, other], "got it beside feature files; want one kind at a time"),
        ([other], "made otherwise than those that the weights were trained on"),
    ):
        arguments = ["predict", *map(str, given), "--checkpoint", str(whole), "--out", out]
        result = CliRunner().invoke(leantad, arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output


@pytest.mark.ci
@pytest.mark.slow
def test_actionformer_trains_on_features(features, tmp_path):
    done = run(features, tmp_path / "run", **SETTINGS, **ACTIONFORMER)
    assert done.exit_code == 0, done.output


@pytest.mark.ci
@pytest.mark.slow
def test_two_ranks_train_on_features_as_one_does_on_twice_as_many(features, tmp_path):
    options = {**SETTINGS, "run__epochs": 1, "run__eval_every": 1, "optimizer__warmup_steps": 0}
    process = start(features, tmp_path / "two", launcher=2, **options)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert next(event for event in log if event["event"] == "start")["world_size"] == 2
    one = run(features, tmp_path / "one", **{**options, "optimizer__batch_size": 4})
    assert one.exit_code == 0, one.output
    steps = [sum(e["event"] == "train" for e in log)]
    log = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert steps == [sum(e["event"] == "train" for e in log)]
