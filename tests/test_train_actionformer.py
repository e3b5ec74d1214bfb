"""Whole runs with ActionFormer's detector: both kinds of windows, resumed, evaluated, from the recipe."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_run import assert_same_weights, make_shards_of, run, weights

from model.detector.actionformer.detector import ActionFormer
from train.eval import main as evaluate
from train.postprocess import PostSettings
from train.settings import RECIPES, load_settings

SMALL = {
    "detector__kind": "actionformer",
    "detector__actionformer__embed_dim": 16,
    "detector__actionformer__head_dim": 16,
    "detector__actionformer__max_distances": [4, 8],
    "detector__actionformer__attention_windows": [5],
    "post__quality_power": 0,
    "post__voting_tiou": 0.7,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards_of(tmp_path_factory.mktemp("tiny"))


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("window_seconds", ["null", 1.5])
def test_it_trains_resumes_exactly_and_evaluates_on_both_kinds_of_windows(
    shards, tmp_path, monkeypatch, window_seconds
):
    options = {**SMALL, "data__window_seconds": window_seconds, "run__checkpoint_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(shards, whole, **options)
    assert done.exit_code == 0, done.output
    with monkeypatch.context() as patched:
        patched.setattr(ActionFormer, "loss", fails_at_third_call(ActionFormer.loss))
        assert run(shards, cut, **options).exit_code != 0
    again = run(shards, cut, "--resume", **options)
    assert again.exit_code == 0, again.output
    assert_same_weights(whole, cut)
    assert 1 < weights(whole)["detector.normaliser.value"].item() < 100
    metrics = json.loads((whole / "metrics.json").read_text())
    out = ["--out", str(tmp_path / "detections.json")]
    result = CliRunner().invoke(evaluate, ["--checkpoint", str(whole), "--json", "--quiet", *out])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["average_mAP"] == metrics["average_mAP"]


def fails_at_third_call(loss):
    calls = []

    def failing(self, *args, **options):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("power is gone")
        return loss(self, *args, **options)

    return failing


def test_the_recipe_differs_from_the_demo_in_the_detector_its_rate_and_scores_alone():
    demo, other = load_settings(RECIPES / "demo.yaml"), load_settings(RECIPES / "demo_actionformer.yaml")
    assert other.detector.kind == "actionformer" and other.post.quality_power == 0
    optimizer = other.optimizer.model_copy(update={"detector_lr": demo.optimizer.detector_lr})
    post = PostSettings(quality_power=0.25)
    same = {"detector": demo.detector, "post": post, "optimizer": optimizer}
    assert other.model_copy(update=same) == demo
