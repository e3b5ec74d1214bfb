"""Settings: strict keys with suggestions, overrides, recipes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from model.backbones import build_backbone
from model.inverse_accuracy import smallest_beta
from pipeline.schemas import parse_yaml
from settings_group import groups_of, settings_of
from train.build_network import build_network
from train.cli import one_line
from train.main import main
from train.parameter_groups import parameter_groups
from train.settings import (
    RECIPES,
    RENAMED,
    Settings,
    dump_settings,
    load_settings,
    read_settings,
    settings_from,
)

EVERY = {setting.name: setting for name, group in groups_of(Settings) for setting in settings_of(group, name)}


# Recipes whose backbone is ours: another library need not be installed
OF_OURS = [r for r in sorted(RECIPES.glob("*.yaml")) if ":" not in load_settings(r).encoder.backbone]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_a_round_trip(recipe):
    settings = load_settings(recipe)
    assert settings_from(parse_yaml(dump_settings(settings), where="dump")) == settings


def test_the_recipe_of_etads_paper_has_its_values():
    settings = load_settings(RECIPES / "activitynet_etad_paper.yaml")
    detector, own, weights = settings.detector, settings.detector.etad, settings.detector.weights
    assert (detector.kind, detector.num_samples, detector.proposal_sampling) == ("etad", 495, "random")
    assert (detector.neck_dim, detector.fc_dim, detector.head_dim, own.head_layers) == (256, 512, 128, 3)
    assert (detector.roi_bins, detector.roi_context, detector.regression_tiou) == (24, 0.5, (0.7, 0.8, 0.9))
    assert (detector.confident_tiou, own.offset_beta, own.boundary_radius) == (0.9, 1, 1.5)
    assert (own.balancing, own.matching, own.bins) == ("drawn", "once", "sampled")
    assert not (own.norms or own.class_scores or own.step_shortcut)
    assert (weights.boundary, weights.tiou_class, weights.tiou_regression) == (1, 1, 5)
    assert (weights.boundary_offset, weights.centre_offset, weights.proposal_boundary) == (10, 10, 0.5)
    optimizer, post = settings.optimizer, settings.post
    assert (optimizer.detector_lr, optimizer.encoder_lr, optimizer.weight_decay) == (5e-4, 5e-7, 1e-4)
    assert (optimizer.schedule, optimizer.step_factor, optimizer.gradient_clip) == ("step", 0.1, 0)
    assert (post.sigma, post.quality_power, post.boundary_peaks, post.nms_tiou) == (0.35, 1, True, 0)
    assert (settings.data.resize, settings.data.crop) == ((171, 128), 112)
    assert round(settings.encoder.clip_ratio * settings.data.num_clips) == 40


def test_the_recipe_of_etads_paper_takes_a_step_at_reduced_size():
    sizes = ["encoder.backbone=r2plus1d_tiny", "encoder.weights=null", "encoder.frozen_stages=-1"]
    sizes += ["detector.num_steps=16", "detector.neck_dim=16", "detector.fc_dim=16"]
    sizes += ["detector.head_dim=16", "detector.roi_bins=8"]
    settings = load_settings(RECIPES / "activitynet_etad_paper.yaml", sizes)
    network = build_network(settings, num_classes=3)
    network.train()
    clips = torch.randint(0, 256, (2, 8, 3, 8, 16, 16), dtype=torch.uint8)
    truth = [torch.tensor([[2.0, 9.0]])] * 2, [torch.tensor([1])] * 2
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.optimizer))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss, _ = network(clips, *truth, generator=torch.Generator().manual_seed(0))
    loss.backward()
    optimizer.step()
    still = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    # Offsets are trained on proposals that fit, of which few random ones at this size may have none.
    offsets = re.compile(r"detector\.stages\.\d\.(start|end|centre)\.")
    assert loss.isfinite() and [name for name in still if not offsets.match(name)] == []


def test_a_recipe_can_be_named_without_its_path():
    assert load_settings(Path("demo")) == load_settings(RECIPES / "demo.yaml")


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.num_clip=3", r"data\.num_clip: unknown setting; did you mean 'num_clips'\?"),
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


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["encoder.clip_ratio=1.5"],
            "encoder.clip_ratio: Input should be less than or equal to 1 (got 1.5); share of a video's clips "
            "whose gradient is computed",
        ),
        (
            ["optimizer.encoder_lr=fast"],
            "optimizer.encoder_lr: Input should be a valid number, unable to parse string as a number "
            "(got 'fast'); highest learning rate of the encoder",
        ),
        (
            ["detector.regression_tiou=[0.5, 2]"],
            "detector.regression_tiou.1: Input should be less than 1 (got 2); tIoU with an action above "
            "which a proposal's offsets are trained, one value per stage",
        ),
        (
            ["optimizer.betas=[0.9, 1]"],
            "optimizer.betas.1: Input should be less than 1 (got 1); decay per optimizer step of the running "
            "means of the gradient and of its square, each below 1",
        ),
        (
            ["data.pad_short_videos=true"],
            "data.pad_short_videos: got true without data.window_seconds, want it: the length",
        ),
        (["data.crop=300"], "data.crop: got 300, want at most resize (36), the short side"),
        (["post.nms=hard"], "post.nms_tiou: got 0 with nms=hard, want a tIoU above 0, such as 0.5"),
    ],
)
def test_a_wrong_value_is_refused_with_the_meaning_of_its_setting(overrides, message):
    with pytest.raises(ValidationError) as refused:
        load_settings(RECIPES / "demo.yaml", overrides)
    assert one_line(refused.value) == message


def test_what_is_missing_is_named_with_its_meaning():
    with pytest.raises(ValidationError) as group:
        settings_from({})
    assert one_line(group.value) == (
        "data: missing, it has no default; where the videos are and how clips are taken from them"
    )
    with pytest.raises(ValidationError) as setting:
        settings_from({"data": {}})
    assert one_line(setting.value).startswith("data.shards: missing, it has no default; packed videos: ")


def test_several_wrong_values_are_one_line():
    with pytest.raises(ValidationError) as refused:
        load_settings(RECIPES / "demo.yaml", ["encoder.clip_ratio=0", "seed=x"])
    line = one_line(refused.value)
    assert "\n" not in line and "seed: " in line and "; encoder.clip_ratio: " in line


def test_problems_of_other_models_than_settings_are_named_alone():
    class Engine(BaseModel):
        stage: int

    with pytest.raises(ValidationError) as refused:
        Engine(stage="x")
    assert one_line(refused.value).startswith("stage: Input should be a valid integer")


@pytest.mark.parametrize("setting", EVERY.values(), ids=EVERY)
def test_every_setting_says_what_it_is_and_what_it_does(setting):
    sentences = re.split(r"(?<=\.)\s", setting.meaning)
    assert setting.meaning.endswith(".") and "TODO" not in setting.meaning
    assert len(sentences[0].split()) >= 5, "the first sentence stands alone in error messages"
    assert len(sentences[0]) <= 180, "and they are one line"
    vocabulary = set(re.findall(r"[a-z]+", setting.meaning.lower()))
    assert len(vocabulary - set(re.findall(r"[a-z]+", setting.name))) >= 5, "the name again"
    assert setting.type


NUMBERS = [each for each in EVERY.values() if re.search("number|integer", each.type) and each.name != "seed"]
CONSEQUENCE = r"(?i)\b(more|less|larger|smaller|fewer|longer|nearer|rising|0 |1 |null)\b"


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)
def test_a_number_says_what_larger_or_smaller_does(setting):
    assert re.search(CONSEQUENCE, setting.meaning), setting.meaning


@pytest.mark.parametrize("group", groups_of(Settings), ids=lambda group: group[0] or "all")
def test_every_group_says_what_it_holds(group):
    assert len((group[1].__doc__ or "").split()) >= 5


def test_what_descriptions_point_to_exists():
    groups = {name for name, _ in groups_of(Settings) if name}
    for setting in EVERY.values():
        named = re.findall(r"(?<![\w/-])[a-z]+(?:\.[a-z_]+)+", setting.meaning)
        unknown = {name for name in named if name.split(".")[0] in groups} - EVERY.keys() - groups
        pages = re.findall(r"docs/[\w-]+\.md", setting.meaning)
        assert not unknown, setting.name
        assert all((RECIPES.parents[1] / page).is_file() for page in pages), setting.name


def test_the_defaults_of_the_reference_are_those_of_the_settings():
    plain = settings_from({"data": {"shards": "x"}}).model_dump(mode="json")
    for setting in EVERY.values():
        value = plain
        for part in setting.name.split("."):
            value = value[part]
        assert setting.required == (setting.name == "data.shards")
        assert setting.required or value == setting.default, setting.name


def test_numbers_without_a_dot_are_numbers():
    assert load_settings(RECIPES / "demo.yaml", ["optimizer.encoder_lr=1e-4"]).optimizer.encoder_lr == 1e-4


def test_a_key_set_twice_is_refused_by_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\ndata:\n  shards: a\nseed: 2\n")
    with pytest.raises(ValueError, match=r"twice\.yaml, line 4: 'seed' is set twice"):
        load_settings(path)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_OURS, ids=lambda path: path.stem)
def test_every_recipe_ends_at_a_beta_that_all_its_stages_invert(recipe):
    encoder = load_settings(recipe).encoder
    with torch.device("meta"):
        network = build_backbone(encoder.backbone)
    for name in network.stage_names:
        blocks = [block for block in network.get_submodule(name) if block.downsample is None]
        number = sum(len(block.branches) for block in blocks)
        least = smallest_beta(number, torch.bfloat16, post_activation=blocks[0].post_activation)
        assert encoder.beta.end >= least, f"{name}: {number} branches"


@pytest.mark.parametrize("value", ["0_2", "1:30", "010", "0x10", "0b11", "1_0.5", "1:30.5"])
def test_a_number_that_yaml_reads_otherwise_than_people_is_refused(value):
    with pytest.raises(ValueError, match=r"--set run.epochs, got '.*', want a number"):
        read_settings(RECIPES / "demo.yaml", [f"run.epochs={value}"])
    plain = parse_yaml("[1, -2, 1.5e+3, .inf, 1e-4, 0.50]", where="x")
    assert plain == [1, -2, 1500, math.inf, "1e-4", 0.5]
