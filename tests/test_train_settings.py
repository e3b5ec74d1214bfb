"""Settings: strict keys with suggestions, overrides, recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from model.backbones import build_backbone
from model.inverse_accuracy import smallest_beta
from train.main import main
from train.settings import RECIPES, RENAMED, dump_settings, load_settings, parse_yaml, settings_from


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_a_round_trip(recipe):
    settings = load_settings(recipe)
    assert settings_from(parse_yaml(dump_settings(settings), where="dump")) == settings


def test_a_recipe_can_be_named_without_its_path():
    assert load_settings(Path("demo")) == load_settings(RECIPES / "demo.yaml")


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"data\.num_clip: unknown setting; did you mean 'num_clips'\?"):
        load_settings(RECIPES / "demo.yaml", ["data.num_clip=3"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("encoder.clip_ratio=1.5", r"less than or equal to 1"),
        ("encoder.clip_ratio=0", r"greater than 0"),
        ("detector.proposal_ratio=-0.1", r"greater than 0"),
        ("encoder.backbone=r2plus1d_35", r"r2plus1d_34"),
        ("optimizer.encoder_lr=fast", r"valid number"),
        ("data=3", r"want settings below it"),
        ("seed", r"want key=value"),
        ("data.crop: [=", r"want key=value|not YAML|unknown setting"),
    ],
)
def test_a_bad_override_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        load_settings(RECIPES / "demo.yaml", [override])


@pytest.mark.parametrize("old, new", sorted(RENAMED.items()))
def test_a_renamed_setting_is_refused_with_its_new_name(old, new):
    with pytest.raises(ValueError, match=rf"{old}: renamed; write {new} instead"):
        load_settings(RECIPES / "demo.yaml", [f"{old}=1"])
    *parents, last = new.split(".")
    group = settings_from({"data": {"shards": "x"}})
    for name in parents:
        group = getattr(group, name)
    assert last in type(group).model_fields


def test_numbers_without_a_dot_are_numbers():
    assert load_settings(RECIPES / "demo.yaml", ["optimizer.encoder_lr=1e-4"]).optimizer.encoder_lr == 1e-4


def test_a_key_set_twice_is_refused_by_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\ndata:\n  shards: a\nseed: 2\n")
    with pytest.raises(ValueError, match=r"twice\.yaml, line 4: 'seed' is set twice"):
        load_settings(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "nowhere.yaml"], "no such file"),
        (["--recipe", "demo", "--set", "encoder.clip_ratio=2"], "encoder.clip_ratio"),
        (["--recipe", "demo", "--set", "encodr.clip_ratio=0.2"], "did you mean 'encoder'?"),
        (["--recipe", "demo", "--set", "data.shards=nowhere"], "nowhere"),
        ([], "--recipe: missing"),
        (["--resume"], "--resume: no run in "),
        (["--recipe", "binary.yaml"], "binary.yaml: byte 0 is not UTF-8 text"),
        (["--recipe", "control.yaml"], "control.yaml: not YAML"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_no_run(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    Path("control.yaml").write_bytes(b"seed: \x01")
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_ends_at_a_beta_that_all_its_stages_invert(recipe):
    encoder = load_settings(recipe).encoder
    with torch.device("meta"):
        network = build_backbone(encoder.backbone)
    for name in network.stage_names:
        blocks = [block for block in network.get_submodule(name) if block.downsample is None]
        number = sum(len(block.branches) for block in blocks)
        least = smallest_beta(number, torch.bfloat16, post_activation=blocks[0].post_activation)
        assert encoder.beta.end >= least, f"{name}: {number} branches"
