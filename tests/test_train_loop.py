"""Whole runs on six small videos: what they write, that they resume exactly, how they stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_run import assert_same_weights, make_shards_of, run, start, start_and_hold, weights

from pipeline.dataset import Dataset
from train import inference, loop
from train.build_network import build_network
from train.eval import main as evaluate
from train.evaluation.average_precision import PROTOCOLS
from train.evaluation.class_thresholds import choose_thresholds, read_thresholds
from train.inference import load_trained
from train.loop import train_step
from train.main import main as train
from train.model_file import write_model_file
from train.weight_average import WeightAverage


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards_of(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def complete(shards, tmp_path_factory) -> Path:
    """A run that was never disturbed: 2 epochs of 2 steps, checkpoints after each step."""
    out = tmp_path_factory.mktemp("complete") / "run"
    result = run(shards, out, run__checkpoint_every=1)
    assert result.exit_code == 0, result.output
    return out


def events(out: Path, kind: str) -> list[dict]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.slow
def test_a_run_folder_holds_what_scripts_rely_on(complete, shards):
    for name in ("settings.yaml", "log.jsonl", "metrics.json", "detections.json", "report.html"):
        assert (complete / name).stat().st_size > 0, name
    for name in ("last", "best"):
        assert (complete / "checkpoints" / name / "model.safetensors").is_file()
        packing = json.loads((complete / "checkpoints" / name / "packing.json").read_text())
        assert packing == json.loads((shards / "dataset.json").read_text())["settings"]
    metrics = json.loads((complete / "metrics.json").read_text())
    keys = "protocol tiou mAP average_mAP per_class num_videos num_truth num_detections seconds"
    assert set(metrics) == set(keys.split())
    assert set(metrics["seconds"]) == {"train", "eval"}
    assert metrics["num_videos"] == 2
    assert len(events(complete, "train")) == 4 and len(events(complete, "eval")) == 1
    assert all(0 < event["loss"] < 1000 for event in events(complete, "train"))


@pytest.mark.slow
def test_a_validated_checkpoint_keeps_a_threshold_for_each_class(complete, shards):
    subset = "validation"
    results = json.loads((complete / "detections.json").read_text())["results"]
    wanted = choose_thresholds(Dataset.open(shards).ground_truth(subset), results, subset=subset)
    assert wanted is not None, "choose another seed: nothing is right by chance"
    assert read_thresholds(complete / "checkpoints" / "last") == wanted


@pytest.mark.slow
def test_the_eval_command_finds_what_the_run_found(complete, tmp_path):
    arguments = ["--checkpoint", str(complete), "--json", "--out", str(tmp_path / "found.json")]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    again, once = json.loads(result.stdout), json.loads((complete / "metrics.json").read_text())
    assert {
        name: again[name] for name in ("mAP", "average_mAP", "num_videos", "num_truth", "num_detections")
    } == {name: once[name] for name in ("mAP", "average_mAP", "num_videos", "num_truth", "num_detections")}
    assert again["tiou"] == once["tiou"] and once["protocol"] in PROTOCOLS


@pytest.mark.slow
def test_killed_and_resumed_equals_not_killed(shards, complete, tmp_path):
    out = tmp_path / "killed"
    process = start_and_hold(shards, out, 1, run__checkpoint_every=1)
    process.kill()
    process.communicate()
    resumed = run(shards, out, "--resume", run__checkpoint_every=1)
    assert resumed.exit_code == 0, resumed.output
    assert_same_weights(out, complete)
    losses = [event["loss"] for event in events(out, "train")]
    assert losses == [event["loss"] for event in events(complete, "train")]  # each step logged once


@pytest.mark.slow
def test_a_run_killed_before_the_former_checkpoint_was_removed_removes_it_when_it_is_resumed(
    shards, complete, tmp_path
):
    """Also one that was complete by then, and takes no further step."""
    out = tmp_path / "killed"
    shutil.copytree(complete, out, symlinks=True)
    checkpoints = out / "checkpoints"
    newest = os.readlink(checkpoints / "last")
    shutil.copytree(checkpoints / newest, checkpoints / "step_000001")
    assert run(shards, out, "--resume", run__checkpoint_every=1).exit_code == 0
    assert {path.name for path in checkpoints.glob("step_*")} == {newest, os.readlink(checkpoints / "best")}


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_where_it_stopped(shards, complete, tmp_path):
    out = tmp_path / "stopped"
    process = start_and_hold(shards, out, 1, run__checkpoint_every=1)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert f"stopped and saved; go on with: leantad train --resume --out {out}" in errors
    assert "stopped before the end" in (out / "report.html").read_text()
    assert run(shards, out, "--resume", run__checkpoint_every=1).exit_code == 0
    assert_same_weights(out, complete)


@pytest.mark.slow
@pytest.mark.ci
def test_the_deepspeed_launcher_runs_two_processes_that_share_the_work(shards, tmp_path):
    out = tmp_path / "two"
    process = start(shards, out, launcher=2, optimizer__batch_size=1, run__epochs=1)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert events(out, "start")[0]["world_size"] == 2
    assert len(events(out, "train")) == 2  # four videos, once each; only rank 0 writes
    assert json.loads((out / "metrics.json").read_text())["num_videos"] == 2
    assert not list(out.glob("detections.rank*"))


@pytest.mark.slow
def test_resuming_a_complete_run_changes_nothing(shards, complete):
    before = (complete / "log.jsonl").read_text()
    assert run(shards, complete, "--resume", run__checkpoint_every=1).exit_code == 0
    trained = [line for line in before.splitlines() if '"train"' in line]
    assert [
        line for line in (complete / "log.jsonl").read_text().splitlines() if '"train"' in line
    ] == trained


@pytest.mark.slow
def test_a_copy_that_lost_its_links_goes_on_and_says_so(shards, complete, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(complete, copy, symlinks=True)
    for link in ("last", "best"):
        (copy / "checkpoints" / link).unlink()
    arguments = {"run__checkpoint_every": 1}
    assert "holds a run already" in run(shards, copy, **arguments).stderr
    result = run(shards, copy, "--resume", quiet=False, **arguments)
    assert result.exit_code == 0 and "the link was lost" in result.stderr, result.output
    assert_same_weights(copy, complete)
    (copy / "settings.yaml").unlink()
    result = CliRunner().invoke(train, ["--resume", "--out", str(copy)])
    assert result.exit_code == 2 and "settings.yaml: no such file; give the --recipe" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["*optim_states.pt", "*model_states.pt", "rng_*.safetensors"])
def test_a_damaged_training_state_is_named(shards, complete, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(complete, copy, symlinks=True)
    (path,) = (copy / "checkpoints" / "last" / "resume").rglob(name)
    path.write_bytes(path.read_bytes()[:5000] if path.suffix == ".pt" else b"cut")
    result = run(shards, copy, "--resume", run__checkpoint_every=1)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    assert f"{path.name}: damaged" in result.stderr


@pytest.mark.slow
def test_states_that_come_back_wrong_give_one_warning(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "reconstruction_error", lambda network: 0.62)
    result = run(shards, tmp_path / "run", quiet=False, run__log_every=1)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "computed backwards" in line]
    assert line.startswith("warning: step 1: the encoder's states, computed backwards, are off by 62% (want")


@pytest.mark.slow
def test_a_batch_larger_than_the_data_gives_a_warning(shards, tmp_path):
    result = run(shards, tmp_path / "run", quiet=False, optimizer__batch_size=5, run__epochs=1)
    assert result.exit_code == 0, result.output
    assert "warning: a step takes 5 windows of video, training has 4" in result.stderr
    assert "1 rank x 5 videos x 1 = 5 videos a step, 1 step an epoch, 1 in all" in result.stdout


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_so_and_what_to_try(shards, tmp_path):
    slow = {"optimizer__encoder_lr": 1e-9, "optimizer__detector_lr": 1e-9}
    result = run(shards, tmp_path / "run", quiet=False, **slow)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "nothing was learned" in line]
    assert line.startswith("warning: after 4 of 4 steps nothing was learned") and "run.epochs=300" in line


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(shards, complete):
    result = run(shards, complete)
    assert result.exit_code == 2 and "--resume" in result.stderr


@pytest.mark.slow
def test_a_run_of_a_release_that_lacked_a_setting_goes_on(shards, complete, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(complete, copy, symlinks=True)
    for path in (copy / "settings.yaml", *copy.glob("checkpoints/step_*/settings.yaml")):
        settings = yaml.safe_load(path.read_text())
        del settings["run"]["lost_after_seconds"]
        path.write_text(yaml.safe_dump(settings))
    result = run(shards, copy, "--resume", run__checkpoint_every=1)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_resuming_under_other_settings_is_refused_by_name(shards, complete):
    result = run(shards, complete, "--resume", run__checkpoint_every=1, detector__hidden=32)
    assert result.exit_code == 2 and "detector.neck_dim" in result.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_run_stays_out_of_the_folder_until_the_first_is_gone(shards, complete, tmp_path):
    out = tmp_path / "run"
    first = start_and_hold(shards, out, 1, run__checkpoint_every=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for flags in ((), ("--resume",), ("--force",)):
        second = run(shards, out, *flags, run__checkpoint_every=1)
        assert second.exit_code == 2 and second.stderr.count("\n") == 1, second.output
        assert f"another train is writing here (process {first.pid} on " in second.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    first.kill()
    first.communicate()
    resumed = run(shards, out, "--resume", quiet=False, run__checkpoint_every=1)
    assert resumed.exit_code == 0, resumed.output
    assert f"process {first.pid} on " in resumed.stderr
    assert "did not end by itself; going on in its place" in resumed.stderr
    assert_same_weights(out, complete)
    assert not (out / ".lock").exists()


def changed_data(shards: Path, folder: Path, change) -> Path:
    """A copy of the data set with another dataset.json."""
    shutil.copytree(shards, folder)
    document = json.loads((folder / "dataset.json").read_text())
    change(document)
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def resumed_on(data: Path, out: Path, before: Path):
    """Resume a run whose settings name this data set, as if it had begun with it, not with that before."""
    settings = out / "settings.yaml"
    settings.write_text(settings.read_text().replace(str(before), str(data)))
    return run(data, out, "--resume", run__checkpoint_every=1)


def without_actions(*subsets: str):
    def change(document: dict) -> None:
        for video in document["videos"].values():
            if video["subset"] in subsets:
                video["actions"] = []
        if len(subsets) == 2:
            document["classes"] = []

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subsets", "says"),
    [
        (["validation"], r"subset 'validation' has an action to validate on; .* data.val_subset to one"),
        (["training"], r"subset 'training' has an action to learn from; .* one of: validation \("),
        (["training", "validation"], "no classes, as no video has an action; annotate"),
    ],
)
def test_data_without_actions_is_refused_at_once(shards, complete, tmp_path, subsets, says):
    data = changed_data(shards, tmp_path / "data", without_actions(*subsets))
    fresh = run(data, tmp_path / "run")
    assert fresh.exit_code == 2 and re.search(says, fresh.stderr), fresh.output
    assert fresh.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    shutil.copytree(complete, tmp_path / "old", symlinks=True)
    before = sorted(path.name for path in (tmp_path / "old").rglob("*"))
    assert re.search(says, run(data, tmp_path / "old", "--force").stderr)
    assert sorted(path.name for path in (tmp_path / "old").rglob("*")) == before  # --force removed nothing
    resumed = resumed_on(data, tmp_path / "old", shards)
    assert resumed.exit_code == 2 and re.search(says, resumed.stderr), resumed.output


@pytest.mark.slow
def test_a_run_is_not_resumed_on_videos_that_were_packed_otherwise(shards, complete, tmp_path):
    def other_rate(document: dict) -> None:
        document["settings"] |= {"copy": False, "fps": 30}

    data, out = changed_data(shards, tmp_path / "data", other_rate), tmp_path / "run"
    shutil.copytree(complete, out, symlinks=True)
    result = resumed_on(data, out, shards)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert "packed otherwise than what the run was trained on (copy False here, True there)" in result.stderr


@pytest.mark.slow
def test_a_run_is_not_resumed_on_as_many_windows_of_another_length(shards, complete, tmp_path):
    def longer(document: dict) -> None:
        video = next(video for video in document["videos"].values() if video["subset"] == "training")
        video["duration"] += 0.5

    data, out = changed_data(shards, tmp_path / "data", longer), tmp_path / "run"
    shutil.copytree(complete, out, symlinks=True)
    result = resumed_on(data, out, shards)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert "as many training windows as the run began with, but of other videos" in result.stderr


@pytest.mark.slow
def test_a_run_that_goes_on_with_corrected_annotations_says_so_and_measures_its_best_anew(
    shards, complete, tmp_path
):
    def corrected(document: dict) -> None:
        for video in document["videos"].values():
            video["actions"][0]["segment"][1] -= 0.125

    data, out = changed_data(shards, tmp_path / "data", corrected), tmp_path / "run"
    shutil.copytree(complete, out, symlinks=True)
    result = resumed_on(data, out, shards)
    assert result.exit_code == 0, result.output
    trained, measured = result.stderr.splitlines()
    number = json.loads((complete / "checkpoints" / "last" / "progress.json").read_text())["actions"]
    assert trained.startswith(f"{data}: trained on other annotations from here on: {number.split(',')[0]}")
    assert trained.endswith(f"; before: {number}")
    assert measured == "validated with another ground truth from here on: the best is measured anew"
    assert len(events(out, "eval")) == 2
    assert not run(data, out, "--resume", run__checkpoint_every=1).stderr, "said once"


@pytest.mark.slow
def test_a_protocol_that_cannot_be_read_is_refused_before_the_first_step(shards, tmp_path):
    result = run(shards, tmp_path / "run", run__protocol="0.5:x")
    assert result.exit_code == 2 and "0.5:x" in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_although_it_is_validated_otherwise(shards, complete, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(complete, out, symlinks=True)
    same = {"run__checkpoint_every": 1, "data__val_subset": "training"}
    resumed = run(shards, out, "--resume", quiet=False, **same, run__eval_every=1)
    assert resumed.exit_code == 0, resumed.output
    assert "validated with another data.val_subset from here on: the best is measured anew" in resumed.stderr
    assert json.loads((out / "metrics.json").read_text())["num_videos"] == 4
    assert_same_weights(out, complete)
    best = out / "checkpoints" / "best"
    assert yaml.safe_load((best / "settings.yaml").read_text())["data"]["val_subset"] == "training"
    again = run(shards, out, "--resume", quiet=False, **same, post__sigma=0.4)
    assert again.exit_code == 0 and "another post.sigma from here on" in again.stderr, again.output


@pytest.mark.slow
def test_a_complete_run_that_is_measured_anew_has_no_metrics_meanwhile(
    shards, complete, tmp_path, monkeypatch
):
    def stopped(*_):
        raise ValueError("stopped")

    out = tmp_path / "run"
    shutil.copytree(complete, out, symlinks=True)
    monkeypatch.setattr("train.loop.validate", stopped)
    monkeypatch.setattr("train.loop.validate_checkpoint", stopped)
    assert "stopped" in run(shards, out, "--resume", run__checkpoint_every=1, post__sigma=0.4).stderr
    assert not (out / "metrics.json").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_videos(shards, tmp_path, monkeypatch):
    from model.detector import ProposalDetector

    honest = ProposalDetector.loss

    def broken(self, *args, **kwargs):
        loss, parts = honest(self, *args, **kwargs)
        return loss * float("nan"), {**parts, "boundary": parts["boundary"] * float("nan")}

    monkeypatch.setattr(ProposalDetector, "loss", broken)
    result = run(shards, tmp_path / "nan")
    assert result.exit_code == 1
    assert "boundary" in result.stderr and "train_000" in result.stderr
    assert not (tmp_path / "nan" / "metrics.json").exists()


@pytest.mark.slow
def test_weights_that_a_step_broke_do_not_replace_the_last_checkpoint(shards, tmp_path, monkeypatch):
    """Under ZeRO 0, where DeepSpeed takes the step of an infinite gradient; the loss was finite."""
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 0}}')

    def breaking(run, batches, *, interrupted):
        if run.progress.step == 1:
            first = next(p for p in run.engine.module.detector.parameters() if p.requires_grad)
            first.register_hook(lambda gradient: gradient * float("inf"))
        return train_step(run, batches, interrupted=interrupted)

    monkeypatch.setattr(loop, "train_step", breaking)
    changes = {"run__ds_config": tmp_path / "ds.json", "run__checkpoint_every": 1, "run__eval_every": 9}
    result = run(shards, tmp_path / "run", **changes)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert "after step 2 weights are not finite (first " in result.stderr
    last = tmp_path / "run" / "checkpoints" / "step_000001"
    assert f"; --resume goes on from {last}; if it happens again" in result.stderr
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


@pytest.mark.slow
def test_a_gpu_without_memory_is_one_line_and_the_run_goes_on_with_less(
    shards, complete, tmp_path, monkeypatch
):
    def too_large(run, batches, *, interrupted):
        if run.progress.step == 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.75 GiB of "
                "which 1.50 GiB is free.\nSee documentation for Memory Management"
            )
        return train_step(run, batches, interrupted=interrupted)

    monkeypatch.setattr(loop, "train_step", too_large)
    result = run(shards, tmp_path / "run", run__checkpoint_every=1)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    asked = "error: the GPU has no memory left (CUDA out of memory. Tried to allocate 2.00 GiB); --set a "
    assert result.stderr.startswith(asked) and "--resume goes on from" in result.stderr
    monkeypatch.undo()
    less = {"run__checkpoint_every": 2, "encoder__clips_per_forward": 1, "data__decode_chunk_mib": 16}
    resumed = run(shards, tmp_path / "run", "--resume", **less)
    assert resumed.exit_code == 0, resumed.output
    losses, wanted = (
        [event["loss"] for event in events(out, "train")] for out in (tmp_path / "run", complete)
    )
    assert losses == pytest.approx(wanted, rel=1e-3)  # rounding alone, which beta and Adam make larger


@pytest.mark.slow
@pytest.mark.parametrize("point", ["validate", "warn_if_nothing_is_learned"])  # before and after it is logged
def test_a_run_that_ends_within_its_validation_has_lost_no_step(
    shards, complete, tmp_path, monkeypatch, point
):
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    out, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(loop, point, too_large)
        result = run(shards, out)
    assert result.exit_code == 1 and f"--resume goes on from {checkpoints / 'step_000004'}" in result.stderr
    assert not (checkpoints / "best").exists() and not (out / "metrics.json").exists()
    monkeypatch.setattr(loop, "train_step", too_large)
    resumed = run(shards, out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert_same_weights(out, complete)
    assert read_thresholds(checkpoints / "best") == read_thresholds(complete / "checkpoints" / "best")
    kinds = [event["event"] for event in map(json.loads, (out / "log.jsonl").read_text().splitlines())]
    assert kinds == ["start", *["train"] * 4, "start", "eval", "stop"]
    measured = [json.loads((folder / "metrics.json").read_text()) for folder in (out, complete)]
    assert measured[0]["mAP"] == measured[1]["mAP"]


@pytest.mark.slow
def test_an_epoch_is_at_least_a_pass_where_accumulation_does_not_divide_it(shards, tmp_path):
    options = {"optimizer__batch_size": 1, "optimizer__accumulation_steps": 3, "run__epochs": 1}
    assert run(shards, tmp_path / "run", **options).exit_code == 0
    progress = json.loads((tmp_path / "run" / "checkpoints" / "last" / "progress.json").read_text())
    assert progress["step"] == 2, "four videos, three a step"


@pytest.mark.slow
def test_gradient_accumulation_sees_the_same_videos_in_fewer_steps(shards, tmp_path):
    result = run(
        shards, tmp_path / "run", optimizer__batch_size=1, optimizer__accumulation_steps=2, run__epochs=1
    )
    assert result.exit_code == 0, result.output
    assert [event["step"] for event in events(tmp_path / "run", "train")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"encoder__frozen": True}, {"encoder__reversible": False}])
def test_a_frozen_and_a_plain_encoder_train_too(shards, tmp_path, change):
    result = run(shards, tmp_path / "run", run__epochs=1, **change)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_beta_moves_over_the_run_and_a_checkpoint_keeps_its_own(shards, tmp_path):
    result = run(
        shards,
        tmp_path / "run",
        encoder__beta__schedule="linear",
        encoder__beta__fraction=1.0,
        run__log_every=1,
    )
    assert result.exit_code == 0, result.output
    steps = events(tmp_path / "run", "train")
    assert [round(step["beta"], 6) for step in steps] == [0.0, 0.333333, 0.666667, 1.0]
    assert steps[0]["reconstruction_error"] is None  # beta 0 has no inverse: checkpointed
    assert steps[-1]["reconstruction_error"] == 0  # beta 1 is inverted, exactly


@pytest.mark.slow
def test_beta_does_not_move_over_the_run_of_a_frozen_encoder(shards, tmp_path):
    moving = {"encoder__beta__schedule": "linear", "encoder__beta__start": 0.25}
    result = run(shards, tmp_path / "run", encoder__frozen=True, run__log_every=1, **moving)
    assert result.exit_code == 0, result.output
    assert [step["beta"] for step in events(tmp_path / "run", "train")] == [0.25] * 4
    saved = yaml.safe_load((tmp_path / "run" / "checkpoints" / "last" / "settings.yaml").read_text())
    assert (saved["encoder"]["beta"]["schedule"], saved["encoder"]["beta"]["end"]) == ("constant", 0.25)


@pytest.mark.ci
@pytest.mark.slow
def test_resuming_a_moving_beta_gives_the_weights_of_the_undisturbed_run(shards, tmp_path):
    moving = {"encoder__beta__schedule": "cosine", "encoder__beta__fraction": 1.0, "run__checkpoint_every": 1}
    assert run(shards, tmp_path / "whole", **moving).exit_code == 0
    process = start_and_hold(shards, tmp_path / "cut", 2, **moving)
    process.kill()
    process.communicate()
    saved = yaml.safe_load((tmp_path / "cut" / "checkpoints" / "last" / "settings.yaml").read_text())
    assert saved["encoder"]["beta"]["schedule"] == "constant" and 0 < saved["encoder"]["beta"]["end"] < 1
    assert run(shards, tmp_path / "cut", "--resume", **moving).exit_code == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_validation_that_is_made_up_for_is_of_the_network_that_the_weights_were_trained_in(
    shards, tmp_path, monkeypatch
):
    validate, seen = loop.validate, list[tuple[int, float]]()

    def noted(run):
        seen.append((run.progress.step, run.beta))
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return validate(run)

    monkeypatch.setattr(loop, "validate", noted)
    moving = {"encoder__beta__schedule": "linear", "encoder__beta__fraction": 1.0, "run__eval_every": 1}
    assert run(shards, tmp_path / "run", **moving).exit_code == 1
    assert run(shards, tmp_path / "run", "--resume", **moving).exit_code == 0
    assert seen == [(2, pytest.approx(1 / 3)), (2, pytest.approx(1 / 3)), (4, 1.0)]


@pytest.mark.slow
def test_a_run_with_moving_ratios_and_late_choices_resumes_exactly(shards, tmp_path, monkeypatch):
    moving = {
        "encoder__clip_sampling": "importance",
        "encoder__clip_ratio": 0.9,
        "encoder__clip_ratio_schedule__schedule": "linear",
        "encoder__clip_ratio_schedule__start": 0.1,
        "encoder__clip_ratio_schedule__fraction": 1.0,
        "detector__proposal_sampling": "dpp",
        "detector__proposal_ratio_schedule__schedule": "linear",  # from all proposals to a tenth
    }
    assert run(shards, tmp_path / "whole", **moving).exit_code == 0

    def stopped_after_two(run, batches, *, interrupted):
        result = train_step(run, batches, interrupted=interrupted)
        if run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped_after_two)
        assert run(shards, tmp_path / "cut", **moving).exit_code == 130
    assert run(shards, tmp_path / "cut", "--resume", **moving).exit_code == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    for out in ("whole", "cut"):
        ratios = [round(step["clip_ratio"], 6) for step in events(tmp_path / out, "train")]
        assert ratios == [0.1, 0.366667, 0.633333, 0.9]
        assert [step["proposal_ratio"] for step in events(tmp_path / out, "train")] == [1.0, 0.1, 0.1, 0.1]


@pytest.mark.slow
def test_a_step_that_deepspeed_skips_is_reported(shards, tmp_path, monkeypatch):
    """It leaves out an update with infinite gradients, and counts it."""

    def skipping(run, batches, *, interrupted):
        run.engine.skipped_steps += run.progress.step == 0
        return train_step(run, batches, interrupted=interrupted)

    monkeypatch.setattr(loop, "train_step", skipping)
    result = run(shards, tmp_path / "run", quiet=False, run__epochs=1)
    lines = [line for line in result.output.splitlines() if "not finite" in line]
    assert lines == ["warning: step 1: a gradient was not finite, the weights stay as they were"]


def test_the_log_and_the_checkpoint_have_the_precision(complete):
    start = events(complete, "start")[0]
    assert (start["precision"], start["tf32"], start["deterministic"]) == ("float32", False, False)
    settings = yaml.safe_load((complete / "checkpoints" / "last" / "settings.yaml").read_text())
    assert settings["run"]["precision"] == "float32" and settings["run"]["tf32"] is True
    assert yaml.safe_load((complete / "settings.yaml").read_text())["run"]["precision"] == "auto"


def test_a_checkpoint_of_a_run_in_bf16_predicts_in_bf16_where_there_is_any(
    complete, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "checkpoint"
    shutil.copytree(complete / "checkpoints" / "last", folder)
    text = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(text.replace("precision: float32", "precision: bf16"))
    assert {p.dtype for p in load_trained(folder).network.parameters()} == {torch.float32}
    assert "which a cpu lacks; computing in float32" in capsys.readouterr().err
    monkeypatch.setattr(inference, "has_bf16", lambda device: True)
    assert {p.dtype for p in load_trained(folder).network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_trained(folder, ["run.precision=float32"]).network.parameters()} == {
        torch.float32
    }


def evaluated(checkpoint: Path, out: Path, *more: str) -> tuple[dict[str, float], str]:
    arguments = ["--checkpoint", str(checkpoint), "--json", "--force", "--out", str(out), *more]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["mAP"], result.stderr


@pytest.mark.slow
def test_averaged_weights_lie_beside_the_others_and_are_what_is_evaluated(shards, complete, tmp_path, capfd):
    out, file, found = tmp_path / "ema", tmp_path / "one.leantad", tmp_path / "found.json"
    assert run(shards, out, optimizer__ema_decay=0.5, run__checkpoint_every=1).exit_code == 0
    assert_same_weights(out, complete)
    folder, _ = write_model_file(file, out)
    averaged = load_file(folder / "model_ema.safetensors")
    for source in (out, file):
        loaded = load_trained(source).network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in averaged.items())
    with pytest.raises(ValueError, match="holds one set of weights"):
        load_trained(file, ["optimizer.ema_decay=0"])
    mean_ap, said = evaluated(out, found)
    assert mean_ap == json.loads((out / "metrics.json").read_text())["mAP"]
    assert "averaged weights; --set optimizer.ema_decay=0 uses" in said
    capfd.readouterr()
    raw = load_trained(out, ["optimizer.ema_decay=0"]).network.state_dict()
    assert all(torch.equal(raw[name], value) for name, value in weights(out).items())
    assert any(not torch.equal(averaged[name], value) for name, value in raw.items())
    trained = load_trained(out, ["optimizer.ema_decay=0"])
    first = build_network(trained.settings, len(trained.classes)).named_parameters()
    moved = [name for name, value in first if not torch.equal(raw[name], value)]
    start = dict(build_network(trained.settings, len(trained.classes)).named_parameters())
    assert len(moved) > len(start) / 2 and not any(torch.equal(averaged[n], start[n]) for n in moved)
    assert not capfd.readouterr().err
    (folder / "model_ema.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file"):
        load_trained(out)


@pytest.mark.ci
@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_average(shards, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    options = {"run__checkpoint_every": 1, "optimizer__ema_decay": 0.5}
    assert run(shards, whole, **options).exit_code == 0
    killed = start_and_hold(shards, out, 1, **options)
    killed.kill()
    killed.communicate()
    assert run(shards, out, "--resume", **options).exit_code == 0
    one, other = (load_file(f / "checkpoints" / "last" / "model_ema.safetensors") for f in (whole, out))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_an_average_that_is_lost_or_of_another_network_is_one_line(tmp_path):
    average = WeightAverage.__new__(WeightAverage)
    average.values = [torch.zeros(3)]
    with pytest.raises(ValueError, match="the averaged weights are lost"):
        average.load(tmp_path)
    save_file({"00000": torch.zeros(4)}, tmp_path / "average_00000.safetensors")
    with pytest.raises(ValueError, match="of another network or partitioning"):
        average.load(tmp_path)


@pytest.mark.slow
@pytest.mark.ci
def test_padded_truncated_windows_and_groups_of_layers_train_resume_and_are_evaluated_alike(shards, tmp_path):
    """All of them in one run: windows of 6 s for videos of 2 to 4 s, so that half of each is masked."""
    settings = {
        "data__window_seconds": 6,
        "data__pad_short_videos": "true",
        "data__truncate_to": 0.7,
        "data__least_area": 0.5,
        "data__blur": 0.5,
        "data__min_action_seconds": 0.2,
        "encoder__frozen_stages": 0,
        "optimizer__layer_lrs": "{encoder.backbone.layer2: 0.5, detector.neck: 2}",
        "run__checkpoint_every": 1,
    }
    out, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = run(shards, out, **settings)
    assert result.exit_code == 0, result.output
    rates = events(out, "train")[0]["lr"]
    assert set(rates) == {"encoder", "encoder.backbone.layer2", "detector", "detector.neck"}
    assert rates["encoder.backbone.layer2"] == pytest.approx(rates["encoder"] / 2)
    process = start_and_hold(shards, stopped, 1, **settings)
    process.kill()
    process.communicate()
    assert run(shards, stopped, "--resume", **settings).exit_code == 0
    assert_same_weights(stopped, out)
    mean_ap, _ = evaluated(out, tmp_path / "found.json")
    assert mean_ap == json.loads((out / "metrics.json").read_text())["mAP"]
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    durations = {video.key: video.duration for video in Dataset.open(shards).packed("validation")}
    assert all(d["segment"][1] <= durations[key] + 1e-3 for key, found in results.items() for d in found)
