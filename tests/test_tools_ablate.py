"""`leantad ablate`: the grid and the table by hand, and small studies that fail, stop and go on."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner
from tiny_run import ROOT, SMALL, make_shards_of

from tools.ablate import main
from tools.ablation import runs as ablation_runs
from tools.ablation.grid import parse_vary, plan_runs
from tools.ablation.plot import plot
from tools.ablation.runs import RunResult, Trainings, check_runs, reason_of, run_folder
from tools.ablation.table import cells_of, csv_table, markdown_table, rows_of
from train.settings import dump_settings


def planned(varied: dict, seeds: int = 1):
    return plan_runs(Path("demo"), ["data.shards=x"], varied, seeds=seeds, trust=False)


def complete(run, average: float, *, first: float = 0.5, seconds: float = 60.0, memory: float = 100.0):
    metrics = {"tiou": [0.5, 0.75], "mAP": [first, 2 * average - first], "average_mAP": average}
    return RunResult(run, metrics, seconds, memory)


def test_values_are_read_as_a_recipe_reads_them():
    found = parse_vary(
        ["encoder.clip_ratio=0.1, 1", "encoder.frozen=true,false", "optimizer.betas=[0.9, 0.99],[0.8,0.9]"]
    )
    assert found == {
        "encoder.clip_ratio": [0.1, 1],
        "encoder.frozen": [True, False],
        "optimizer.betas": [[0.9, 0.99], [0.8, 0.9]],
    }


@pytest.mark.parametrize(
    "options, message",
    [
        (["encoder.clip_ratio"], "want key=value,value"),
        (["=1"], "want key=value,value"),
        (["encoder.clip_ratio="], "want key=value,value"),
        (["seed=1,2"], "--seeds"),
        (["encoder.clip_ratio=0.3,0.3"], "twice"),
        (["encoder.clip_ratio=1", "encoder.clip_ratio=0.3"], "twice"),
        (["encoder.clip_ratio=[0.3"], "--vary encoder.clip_ratio"),
    ],
)
def test_what_cannot_be_varied_is_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        parse_vary(options)


@pytest.mark.parametrize("override", ["seed=7", " seed =7"])
def test_a_seed_that_the_study_would_override_is_refused(override):
    with pytest.raises(ValueError, match=r"^--set seed: want --seeds N, which runs every combination"):
        plan_runs(Path("demo"), ["data.shards=x", override], {}, seeds=1, trust=False)


@pytest.mark.slow
def test_every_combination_is_run_with_the_first_seed_before_the_second():
    runs = planned({"encoder.clip_ratio": [0.1, 0.3], "encoder.frozen": [True, False]}, seeds=2)
    got = [(run.values["encoder.clip_ratio"], run.values["encoder.frozen"], run.seed) for run in runs]
    once = [(0.1, True), (0.1, False), (0.3, True), (0.3, False)]
    assert got == [(*pair, seed) for seed in (0, 1) for pair in once]
    for run, (ratio, frozen, seed) in zip(runs, got, strict=True):
        assert (run.settings.encoder.clip_ratio, run.settings.encoder.frozen) == (ratio, frozen)
        assert run.settings.seed == seed
    assert len({run.name for run in runs}) == 8


@pytest.mark.slow
def test_folders_have_names_that_stay_apart_and_stay_in_the_folder():
    values = ["a/b", "a_b", "../x", "x" * 300, "x" * 301]
    runs = planned({"data.train_subset": values})
    names = [run.name for run in runs]
    assert len(set(names)) == len(values)
    assert not any("/" in name or len(name) > 120 for name in names)
    assert names == [run.name for run in planned({"data.train_subset": values})]
    apart = planned({"detector.weights.boundary": [1]}) + planned({"detector.boundary_radius": [1]})
    assert len({run.name for run in apart}) == 2


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"encoder\.clip_ratoi: unknown setting"):
        planned({"encoder.clip_ratoi": [0.1]})
    with pytest.raises(ValueError, match="clip_ratio"):
        planned({"encoder.clip_ratio": [0.1, 3]})


@pytest.mark.slow
def test_mean_and_spread_are_those_of_the_seeds():
    runs = planned({"encoder.frozen": [True, False]}, seeds=3)
    frozen, trained = runs[::2], runs[1::2]
    results = {run.name: complete(run, value) for run, value in zip(frozen, (0.1, 0.2, 0.3), strict=True)}
    results[trained[0].name] = complete(trained[0], 0.4, seconds=120)
    results[trained[1].name] = RunResult(trained[1], reason="loss is nan")
    first, second = rows_of(runs, results)
    assert first["average_mAP_mean"] == pytest.approx(0.2)
    assert first["average_mAP_spread"] == pytest.approx(math.sqrt(0.02 / 2))
    assert (second["complete"], second["failed"], second["runs"]) == (1, 1, 3)
    assert (second["average_mAP_mean"], second["average_mAP_spread"]) == (0.4, None)
    cells = cells_of([first, second])
    assert cells[0] == [
        "encoder.frozen",
        "runs",
        "mAP@0.5 %",
        "average mAP %",
        "training, minutes",
        "peak MiB",
    ]
    assert cells[1] == ["true", "3", "50.0 +- 0.0", "20.0 +- 10.0", "1.0 +- 0.0", "100 +- 0"]
    assert cells[2] == ["false", "1 of 3, 1 failed", "50.0", "40.0", "2.0", "100"]
    read = list(csv.DictReader(csv_table([first, second]).splitlines()))
    assert float(read[0]["average_mAP_mean"]) == first["average_mAP_mean"]
    assert read[1]["average_mAP_spread"] == ""
    assert markdown_table([first, second]).splitlines()[1] == "| --- | --- | --- | --- | --- | --- |"
    drawn = ElementTree.fromstring(plot([first, second], runs, results))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 4  # a dot a complete run


def test_a_study_without_any_complete_run_has_a_table_and_a_plot_all_the_same():
    runs = planned({})
    rows = rows_of(runs, {})
    assert cells_of(rows)[1] == ["as in the recipe", "0 of 1", "-", "-", "-", "-"]
    assert "no complete run" in plot(rows, runs, {})


def test_the_reason_of_a_failure_is_the_last_error_else_the_last_line(tmp_path):
    log = tmp_path / "log"
    log.write_text("warning: x\nerror: no such file\nexiting\n")
    assert reason_of(log, 2) == "no such file"
    log.write_text("Traceback\nKeyError: 3\n\n")
    assert reason_of(log, 1) == "KeyError: 3"
    log.write_text("")
    assert reason_of(log, -9) == "signal 9, without a word"


@pytest.mark.slow
def test_a_complete_run_is_kept_only_if_it_was_measured_as_planned_now(tmp_path):
    [before] = plan_runs(Path("demo"), ["data.shards=x"], {}, seeds=1, trust=False)
    changes = ["data.shards=x", "run.protocol=0.1:0.1:0.5", "post.min_score=0.25"]
    [now] = plan_runs(Path("demo"), changes, {}, seeds=1, trust=False)
    folder = run_folder(tmp_path, before)
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(dump_settings(before.settings))
    check_runs(tmp_path, [now])  # stopped: it is measured when it goes on
    (folder / "metrics.json").write_text("{}")
    check_runs(tmp_path, [before])
    with pytest.raises(ValueError, match="was run with another") as caught:
        check_runs(tmp_path, [now])
    assert str(caught.value) == (
        f"{folder}: was run with another post.min_score (0.0001, now 0.25), run.protocol ('activitynet', now "
        "'0.1:0.1:0.5'); give the same settings to go on with the study, or another --out for a new one"
    )


def test_a_complete_run_whose_memory_and_seconds_are_of_other_settings_is_not_kept(tmp_path):
    overrides = ["data.shards=x", "encoder.train_batch_norm=false"]
    [before] = plan_runs(Path("demo"), overrides, {}, seeds=1, trust=False)
    overrides += ["encoder.clips_per_forward=1"]
    [now] = plan_runs(Path("demo"), overrides, {}, seeds=1, trust=False)
    folder = run_folder(tmp_path, before)
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(dump_settings(before.settings))
    assert not check_runs(tmp_path, [now])  # without a checkpoint it starts anew
    (folder / "checkpoints").mkdir()
    assert check_runs(tmp_path, [now]) == [  # stopped, for lack of memory: it goes on
        f"{folder}: goes on with another encoder.clips_per_forward; its minutes and MiB will be of both"
    ]
    assert not check_runs(tmp_path, [before])
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"was run with another encoder\.clips_per_forward; give the same"):
        check_runs(tmp_path, [now])


def test_a_complete_run_of_a_version_that_measured_without_a_later_setting_is_not_kept(tmp_path):
    [run] = plan_runs(Path("demo"), ["data.shards=x"], {}, seeds=1, trust=False)
    folder = run_folder(tmp_path, run)
    folder.mkdir(parents=True)
    stated = yaml.safe_load(dump_settings(run.settings))
    del stated["post"]["edge_steps"]
    (folder / "settings.yaml").write_text(yaml.safe_dump(stated))
    check_runs(tmp_path, [run])  # stopped: it is measured when it goes on
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="was run with another") as caught:
        check_runs(tmp_path, [run])
    assert str(caught.value) == (
        f"{folder}: was run with another post.edge_steps (not stated, now 1.0); measure it anew with "
        f"leantad train --out {folder} --resume, or give another --out for a new study"
    )


def test_runs_beside_each_other_share_the_cores_or_have_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(ablation_runs.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(ablation_runs, "num_gpus", lambda: 0)
    assert ablation_runs.default_jobs() == 2
    assert Trainings(tmp_path, Path("demo"), 2, False).environment(1)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setattr(ablation_runs, "num_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert ablation_runs.default_jobs() == 2
    assert Trainings(tmp_path, Path("demo"), 2, False).environment(1)["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards_of(tmp_path_factory.mktemp("made"))


def ablate(shards: Path, out: Path, *more: str):
    values = {"data.shards": shards, **SMALL, "run.epochs": 1}
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return CliRunner().invoke(main, ["--recipe", "demo", "--out", str(out), "--json", *sets, *more])


@pytest.mark.ci
@pytest.mark.slow
def test_the_smallest_study_trains_and_is_complete_when_asked_for_again(shards, tmp_path):
    out = tmp_path / "study"
    result = ablate(shards, out, "--vary", "encoder.frozen=true")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    [row], [run] = document["rows"], document["runs"]
    assert (run["state"], row["complete"]) == ("complete", 1)
    assert 0 <= row["average_mAP_mean"] <= 1 and row["average_mAP_spread"] is None
    assert row["seconds_mean"] > 0 and row["memory_mib_mean"] > 0
    assert document["command"] in (out / "results.md").read_text()
    assert json.loads((out / "results.json").read_text()) == document
    log = Path(run["folder"]) / "log.jsonl"
    written = log.read_bytes()
    again = ablate(shards, out, "--vary", "encoder.frozen=true")
    assert again.exit_code == 0 and "1 run complete already" in again.stderr
    assert log.read_bytes() == written
    other = ablate(shards, out, "--vary", "encoder.frozen=true", "--set", "optimizer.detector_lr=0.1")
    assert other.exit_code == 2 and "optimizer.detector_lr" in other.stderr


# Stands for train/main.py where what matters is what becomes of processes: it fails where the seed is odd and
# the folder has no file "mended", and waits for Ctrl-C, then "saves", where there is a file "wait".
STAND_IN = """
import json, pathlib, sys, time
words = sys.argv[1:]
out, study = pathlib.Path(words[words.index("--out") + 1]), pathlib.Path(__file__).parent
out.mkdir(parents=True, exist_ok=True)
try:
    (out / "started").open("a").write("x")
    while (study / "wait").exists():
        time.sleep(0.02)
except KeyboardInterrupt:
    (out / "saved").touch()
    sys.exit(130)
if out.name.endswith("seed1") and not (study / "mended").exists():
    sys.exit("error: this seed is no good")
metrics = {"protocol": "activitynet", "tiou": [0.5], "mAP": [0.25], "average_mAP": 0.25, "per_class": {}}
metrics |= {"num_videos": 1, "num_truth": 1, "num_detections": 1, "seconds": {"train": 3.0, "eval": 1.0}}
(out / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    script = tmp_path / "main.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(ablation_runs, "TRAIN", script)
    return tmp_path


@pytest.mark.slow
def test_a_run_that_fails_ends_no_other_and_is_tried_again(stand_in):
    out = stand_in / "study"
    result = ablate(Path("x"), out, "--seeds", "3", "--jobs", "2")
    assert result.exit_code == 1, result.output
    assert "seed1: this seed is no good" in result.stderr
    states = [(run["state"], run["reason"]) for run in json.loads(result.stdout)["runs"]]
    assert states == [("complete", None), ("failed", "this seed is no good"), ("complete", None)]
    (stand_in / "mended").touch()
    again = ablate(Path("x"), out, "--seeds", "4")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rows"][0]["complete"] == 4
    started = {path.parent.name[-1]: path.read_text() for path in out.glob("runs/*/started")}
    assert started == {"0": "x", "1": "xx", "2": "x", "3": "x"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_lets_its_runs_save_and_starts_no_other(stand_in, number):
    (stand_in / "wait").touch()
    runs = stand_in / "study" / "runs"
    code = f"from tools.ablation import runs; runs.TRAIN = {str(stand_in / 'main.py')!r}; "
    code += "from tools.ablate import main; main()"
    words = ["--recipe", "demo", "--set", "data.shards=x", "--seeds", "5", "--jobs", "2"]
    command = [sys.executable, "-c", code, *words, "--out", str(stand_in / "study")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60  # for imports on a busy machine
    while len(list(runs.glob("*/started"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on with the study" in errors and "Traceback" not in errors
    assert len(list(runs.glob("*/started"))) == len(list(runs.glob("*/saved"))) == 2
