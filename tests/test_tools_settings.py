"""`leantad settings`: what it finds under a name, how it shows it, and the page that it writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from commands import call

from settings_group import Setting, groups_of, settings_of
from tools.settings import linked, main, values_of
from train.settings import RENAMED, Settings

ROOT = Path(__file__).resolve().parents[1]
EVERY = [setting for name, group in groups_of(Settings) for setting in settings_of(group, name)]

run = partial(call, main)


def named(*arguments: str) -> list[str]:
    """The names of the settings that are shown, in order."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [setting["name"] for setting in json.loads(result.stdout)["settings"]]


def test_the_page_of_the_manual_is_what_the_command_prints():
    """If this fails: leantad settings --markdown > docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text() == run("--markdown").stdout


def test_a_setting_is_shown_with_type_range_default_and_meaning():
    assert run("encoder.clip_ratio").stdout == (
        "encoder.clip_ratio  number, above 0, at most 1; default 0.3\n"
        "                    Share of a video's clips whose gradient is computed. 1 is\n"
        "                    the full gradient; less saves time and little memory, and\n"
        "                    makes the gradient noisier.\n"
    )


SCHEDULE = ("schedule", "start", "fraction")
RATIOS = [
    "encoder.clip_ratio",
    *(f"encoder.clip_ratio_schedule.{name}" for name in SCHEDULE),
    "detector.proposal_ratio",
    *(f"detector.proposal_ratio_schedule.{name}" for name in SCHEDULE),
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("seed", ["seed"]),
        ("post.sigma", ["post.sigma"]),
        ("ratio", RATIOS),
        ("RATIO", RATIOS),
        ("encoder.beta.f", ["encoder.beta.fraction"]),
        ("encoder.beta", [f"encoder.beta.{name}" for name in ("schedule", "start", "end", "fraction")]),
    ],
)
def test_a_name_is_a_setting_a_group_or_a_part_of_names(name, found):
    assert named(name) == found


def test_a_group_brings_the_groups_within_it_and_nothing_else():
    """`encoder` is in optimizer.encoder_lr, too, which is no setting of the encoder."""
    found = named("encoder")
    assert "encoder.clip_ratio" in found and "encoder.beta.end" in found
    assert all(name.startswith("encoder.") for name in found)


def test_without_a_name_every_setting_and_the_meaning_of_every_group_is_shown():
    assert named() == [setting.name for setting in EVERY]
    text = run().stdout
    assert not [setting.name for setting in EVERY if f"\n{setting.name}" not in f"\n{text}"]
    for name, group in groups_of(Settings):
        assert not name or f"\n{name}: {group.__doc__.split()[0]}" in text, name


def test_a_group_that_is_not_shown_whole_is_not_introduced():
    assert "detector:" in run("detector").stdout
    assert "detector:" not in run("roi").stdout


@pytest.mark.parametrize("name", [(), ("detector",), ("detector.weights",), ("seed",)])
def test_no_line_is_wider_than_a_terminal(name):
    assert max(map(len, run(*name).stdout.splitlines())) <= 80


def test_the_text_of_all_settings_of_a_group_begins_in_one_column():
    lines = run("detector.weights").stdout.splitlines()[3:]
    begins = {len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")}
    values = [line for line in lines if "default" in line and not line.startswith(" ")]
    assert len(begins) == 1 and {line.index("number") for line in values} == begins


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip_ration", "did you mean 'clip_ratio'?"),
        ("encodr.clip_ratio", "did you mean 'encoder.clip_ratio'?"),
        ("optimiser", "did you mean 'optimizer'?"),
        (
            "zzz",
            "groups: data, data.limits, encoder, encoder.beta, encoder.clip_ratio_schedule, detector, "
            "detector.proposal_ratio_schedule, detector.weights, detector.actionformer, detector.etad, "
            "optimizer, post, run",
        ),
        ("fc", None),
        ("encoder.exact", "encoder.exact: renamed; see leantad settings encoder.fixed_point_states"),
        ("exact", "exact: renamed; see leantad settings encoder.fixed_point_states"),
    ],
)
def test_an_unknown_name_is_refused_with_what_was_probably_meant(name, message):
    result = run(name)
    if message is None:  # a former name that is a part of today's
        assert result.exit_code == 0 and "detector.fc_dim" in result.stdout
        return
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"error: {name}: ")
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("new", sorted(set(RENAMED.values())))
def test_the_new_name_of_a_renamed_setting_is_found(new):
    assert named(new) == [new]


def test_json_is_one_document_with_plain_values():
    result = run("data.window_seconds", "--json")
    assert not result.stderr
    assert json.loads(result.stdout) == {
        "settings": [
            {
                "name": "data.window_seconds",
                "type": "number or null",
                "required": False,
                "default": None,
                "allowed": "above 0",
                "meaning": next(s.meaning for s in EVERY if s.name == "data.window_seconds"),
            }
        ]
    }


def test_the_page_is_of_all_settings_and_for_people():
    for arguments in (["--markdown", "data"], ["--markdown", "--json"]):
        result = run(*arguments)
        assert result.exit_code == 2 and "leave out NAME and --json" in result.stderr


def test_quiet_prints_nothing():
    assert run("data", "--quiet").output == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("data.shards", "text; required"),
        ("data.flip", "number, at least 0, at most 1; default 0.5"),
        ("data.random_crop", "true or false; default true"),
        ("encoder.weights", "text or null; default null"),
        ("encoder.steps_per_clip", "integer or null, at least 1; default 1"),
        (
            "encoder.clip_sampling",
            "text, one of random, uniform, block, labels, farthest, dpp, top_gradient, importance; "
            "default random",
        ),
        ("detector.neck_dim", "integer, at least 8, a multiple of 4; default 256"),
        ("detector.regression_tiou", "list of numbers, each above 0, below 1; default [0.7, 0.8, 0.9]"),
        ("optimizer.layer_lrs", "numbers by name, each at least 0; default {}"),
        ("optimizer.betas", "list of 2 numbers; default [0.9, 0.999]"),
    ],
)
def test_type_range_and_default_are_plain_english(name, shown):
    assert values_of(next(setting for setting in EVERY if setting.name == name)) == shown


def test_names_become_code_and_pages_become_links():
    text = "See post.quality_power, detector.weights.boundary, log.jsonl and docs/choose-settings.md."
    assert linked(text) == (
        "See `post.quality_power`, `detector.weights.boundary`, `log.jsonl` and "
        "[choose-settings.md](choose-settings.md)."
    )
    assert linked("exp(-tIoU^2 / sigma), 0.5:0.05:0.95") == "exp(-tIoU^2 / sigma), 0.5:0.05:0.95"


def test_a_setting_without_limits_is_its_type():
    assert values_of(Setting("a.b", "integer", False, 3, "", "")) == "integer; default 3"
