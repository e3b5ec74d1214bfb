"""detector.class_agnostic: all actions are one class, until external scores say which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from feature_cases import WIDTH, feature_file
from tiny_run import make_shards_of, run

from pipeline.dataset import Dataset
from tools.plan import PlanOptions
from tools.view import read_input
from train.cli import Output
from train.data import open_data
from train.eval import main as evaluate
from train.settings import load_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards_of(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run(shards, out, detector__class_agnostic=True, run__epochs=1, run__eval_every=1)
    assert done.exit_code == 0, done.output
    return out


def evaluated(*arguments: object) -> tuple[dict, list[str]]:
    result = CliRunner().invoke(evaluate, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr.splitlines()


def labels_in(path: Path) -> set[str]:
    results = json.loads(path.read_text())["results"]
    return {entry["label"] for entries in results.values() for entry in entries}


@pytest.mark.ci
@pytest.mark.slow
def test_a_run_knows_one_class_and_its_validation_counts_all_actions_as_that(shards, trained, tmp_path):
    assert json.loads((trained / "checkpoints" / "best" / "classes.json").read_text()) == ["proposal"]
    assert labels_in(trained / "detections.json") == {"proposal"}
    metrics = json.loads((trained / "metrics.json").read_text())
    dataset = Dataset.open(shards)
    assert len(dataset.classes) > 1  # what is on disk stays
    true = sum(len(video.actions) for video in dataset.ground_truth("validation").values())
    assert metrics["num_truth"] == true and list(metrics["per_class"]) == ["proposal"]
    again, said = evaluated("--checkpoint", trained, "--out", tmp_path / "again.json")
    assert again["average_mAP"] == pytest.approx(metrics["average_mAP"], abs=1e-12)
    assert not any("classes" in line and "know" in line for line in said)
    shown = read_input(trained / "detections.json", shards, "validation")
    assert {action.label for video in shown.ground_truth.values() for action in video.actions} == {"proposal"}


@pytest.mark.ci
@pytest.mark.slow
def test_external_scores_give_its_segments_their_classes(shards, trained, tmp_path):
    dataset = Dataset.open(shards)
    scores = {
        key: {name: 1.0 if any(a.label == name for a in video.actions) else 0.1 for name in dataset.classes}
        for key, video in dataset.ground_truth("validation").items()
    }
    path, out = tmp_path / "scores.json", tmp_path / "named.json"
    lists = {key: [row[name] for name in dataset.classes] for key, row in scores.items()}
    path.write_text(json.dumps({"results": lists, "class": list(dataset.classes)}))
    found, _ = evaluated("--checkpoint", trained, "--external-scores", path, "--out", out)
    assert labels_in(out) <= set(dataset.classes) and labels_in(out)
    assert set(found["per_class"]) <= set(dataset.classes) and len(found["per_class"]) > 1


def settings_of(location: Path, **more: object):
    sets = [f"data.shards={location}", "detector.class_agnostic=true"]
    return load_settings(Path("demo"), sets + [f"{name}={value}" for name, value in more.items()])


def test_feature_files_lose_their_classes_the_same_way(tmp_path):
    path = feature_file(tmp_path / "features.h5")
    dataset = open_data(settings_of(path, **{"data.num_features": WIDTH}))
    assert dataset.classes == ("proposal",)
    assert {a.label for video in dataset.videos.values() for a in video.actions} == {"proposal"}


@pytest.mark.slow
def test_plan_counts_one_class(shards):
    options = PlanOptions(Path("demo"), (), str(shards), 7, 8.0, 1, None, False)
    assert options.classes_and_frame_size(settings_of(shards), Output(quiet=True))[0] == 1
