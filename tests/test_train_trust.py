"""What a stranger's checkpoint, recipe or result file names is not run, fetched or shown unasked."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import yaml
from commands import call, refused
from tiny_run import SMALL, make_shards_of

from settings_group import groups_of, settings_of
from tools.plan import main as plan
from tools.view import main as view
from train.cli import Output
from train.detections import VideoDetections, write_outputs
from train.eval import main as evaluate
from train.main import main as train
from train.main import prepare_folder
from train.settings import Settings, dump_settings, load_settings
from train.trust import LOCATIONS, is_own_text, key_file, leads_elsewhere, signed, unsigned


def settings_with(**locations: object) -> Settings:
    """Those of a small run; locations: settings with __ for the dot."""
    values = {**SMALL, **{name.replace("__", "."): value for name, value in locations.items()}}
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return load_settings(Path("demo"), overrides)


def stranger(folder: Path, **locations: object) -> Path:
    """A checkpoint that another account wrote; its weights are never reached."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "classes.json").write_text('["jump"]')
    (folder / "settings.yaml").write_text(unsigned(dump_settings(settings_with(**locations))))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = ["pipe:touch {here}/ran; cat x/{{00000..00001}}.tar", "PIPE:touch {here}/ran #.tar"]
ELSEWHERE = ["http://127.0.0.1:9/set", "S3://bucket/a.tar", "file:///etc", "/etc", "../set", "data/../../set"]
ELSEWHERE += ["{{data,/etc}}/00000.tar", "~/data", "linked"]


@pytest.mark.slow
@pytest.mark.parametrize("location", COMMANDS + ELSEWHERE)
def test_eval_uses_no_data_set_that_only_a_strangers_checkpoint_names(here, location):
    (here / "linked").symlink_to("/etc")
    location = location.format(here=here)
    checkpoint = stranger(here / "theirs", data__shards=location)
    message = refused(evaluate, "--checkpoint", checkpoint)
    assert "theirs/settings.yaml: data.shards" in message and "with --shards DATA, or --trust" in message
    assert not (here / "ran").exists()
    for more in (["--shards", "nowhere"], ["--set", "data.shards=nowhere"]):
        assert "model.safetensors: damaged" in refused(evaluate, "--checkpoint", checkpoint, *more)
    assert not (here / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("location", COMMANDS)
@pytest.mark.parametrize("form", ["settings of a run", "whole", "recipe"])
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_recipe_runs_no_command_unasked(here, location, form, command):
    folder = stranger(here / "theirs", data__shards=location.format(here=here))
    recipe = folder / "settings.yaml"
    if form == "whole":
        recipe = recipe.rename(here / "copied.yaml")
    elif form == "recipe":
        recipe = here / "mine.yaml"
        recipe.write_text(yaml.safe_dump({"data": {"shards": location.format(here=here)}}))
    rest = ["--out", here / "run"] if command == "train" else []
    message = refused({"train": train, "plan": plan}[command], "--recipe", recipe, *rest)
    assert f"{recipe}: data.shards is a command" in message and "--trust" in message
    assert not (here / "ran").exists() and not (here / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCATIONS)
def test_the_settings_of_a_strangers_run_lead_nowhere_and_a_recipe_does(here, name):
    elsewhere = str(here.parent / "elsewhere")
    elsewhere = f"hf:{elsewhere}" if name == "encoder.backbone" else elsewhere
    folder = stranger(here / "theirs", **{"data__shards": "set", name.replace(".", "__"): elsewhere})
    run = ["--out", here / "run"]
    message = refused(train, "--recipe", folder / "settings.yaml", *run)
    assert f"{name} leads to" in message and f"with --set {name}=..., or --trust" in message
    group, setting = name.split(".")
    values: dict = {"data": {"shards": "set"}}
    values.setdefault(group, {})[setting] = elsewhere
    (here / "mine.yaml").write_text(yaml.safe_dump(values))
    assert load_settings(here / "mine.yaml").model_dump()[group][setting] == elsewhere


def test_deepspeeds_own_file_is_named_even_if_it_lies_here(here):
    folder = stranger(here / "theirs", data__shards="set", run__ds_config="theirs/ds.json")
    assert "run.ds_config leads to" in refused(train, "--recipe", folder / "settings.yaml", "--out", "run")


@pytest.mark.parametrize("location", [*COMMANDS, "http://127.0.0.1:9/set", "/etc"])
def test_a_strangers_run_is_not_resumed_with_the_data_it_names(here, location):
    folder = stranger(here / "theirs", data__shards=location.format(here=here))
    message = refused(train, "--resume", "--out", folder)
    assert "settings.yaml: data.shards" in message and "--set data.shards=..." in message
    assert not (here / "ran").exists()
    named = call(train, "--resume", "--out", folder, "--set", "data.shards=nowhere")
    assert "error: nowhere: not here" in named.stderr


def test_data_below_the_working_folder_and_an_empty_setting_need_no_question(here):
    for location in ("data/set", "./data", "data/{00000..00003}.tar", "data/*.tar", "a:b/c", "..data"):
        assert not leads_elsewhere(location, here), location
    checkpoint = stranger(here / "theirs", data__shards="data/set")
    assert "model.safetensors: damaged" in refused(evaluate, "--checkpoint", checkpoint)


def test_whoever_trusts_a_stranger_says_so(here):
    checkpoint = stranger(here / "theirs", data__shards="pipe:touch ran; false # 00000.tar")
    assert "damaged" in refused(evaluate, "--checkpoint", checkpoint, "--trust")
    assert load_settings(checkpoint / "settings.yaml", trust=True).data.shards.startswith("pipe:")


def test_settings_are_ones_own_until_they_are_changed_or_read_elsewhere(here, monkeypatch):
    text = dump_settings(settings_with(data__shards="/data/set"))
    assert is_own_text(text) and not is_own_text(unsigned(text))
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert not is_own_text(text.replace("/data/set", "/data/xyz"))
    assert not is_own_text(text + "seed: 3\n") and not is_own_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "other"))
    assert not is_own_text(text)
    assert is_own_text(signed("a: 1\n"))  # the other account has a key of its own by now
    assert not is_own_text(text)


def test_an_account_that_can_keep_no_key_works_and_owns_nothing(here, monkeypatch):
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file"))
    text = dump_settings(settings_with(data__shards="/data/set"))
    assert yaml.safe_load(text)["data"]["shards"] == "/data/set" and not is_own_text(text)
    with redirect_stderr(io.StringIO()) as stderr:
        prepare_folder(settings_with(data__shards="set"), here / "run", Output(), resume=False, force=False)
    assert "key: no key can be kept there; eval will take this run for a stranger's" in stderr.getvalue()


def test_a_damaged_key_owns_nothing(here, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(here))
    key_file().parent.mkdir()
    key_file().write_bytes(b"short")
    assert not is_own_text(signed("a: 1\n")) and signed("a: 1\n") == "a: 1\n"


def test_every_setting_of_free_text_was_considered():
    names = {"data.train_subset", "data.val_subset", "run.protocol"}  # lead nowhere
    settings = [setting for name, group in groups_of(Settings) for setting in settings_of(group, name)]
    free = {each.name for each in settings if "text" in each.type and not each.allowed.startswith("one of")}
    assert free == names | set(LOCATIONS) - {"encoder.backbone"}  # which is one of many forms


@pytest.mark.slow
def test_ones_own_run_is_evaluated_resumed_and_moved_without_a_question(here):
    shards = make_shards_of(here / "data")
    named = ["--set", f"data.shards=pipe:cat {shards}/00000.tar", "--set", "run.epochs=1"]
    sets = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    trained = call(train, "--recipe", "demo", "--out", "run", "--quiet", *sets, *named)
    assert trained.exit_code == 0, trained.output
    assert call(evaluate, "--checkpoint", "run", "--out", "first.json").exit_code == 0
    (here / "run").rename(here / "moved")
    assert call(evaluate, "--checkpoint", "moved", "--out", "second.json").exit_code == 0
    assert call(train, "--resume", "--out", "moved", "--quiet").exit_code == 0
    last = here / "moved" / "checkpoints" / "last" / "settings.yaml"
    last.write_text(unsigned(last.read_text()))
    theirs = ("--checkpoint", "moved/checkpoints/last", "--out", "third.json")
    assert "data.shards is a command" in refused(evaluate, *theirs)
    assert call(evaluate, *theirs, "--trust").exit_code == 0
    assert call(evaluate, *theirs, "--shards", shards, "--force").exit_code == 0


# ----------------------------------------------------------------------------------------- result files


@pytest.fixture
def predicted(here) -> Path:
    """A result of predict, and two videos: one elsewhere, one that came with it."""
    (here / "secret").mkdir()
    videos = [VideoDetections(name, here / name / f"{name}.mp4", 1.0, ()) for name in ("secret", "found")]
    (here / "found").mkdir()
    for video in videos:
        video.file.write_bytes(f"bytes of {video.key}".encode())
    write_outputs(here / "found", videos, metadata={})
    return here / "found"


def pages(result: Path, *more: object) -> tuple[str, str]:
    """The pages of view --embed in one text, and what was printed."""
    shown = call(view, result, "--out", "view", "--embed", "--force", *more)
    assert shown.exit_code == 0, shown.output
    return "".join(page.read_text() for page in Path("view").rglob("*.html")), shown.output


SECRET, FOUND = "Ynl0ZXMgb2Ygc2VjcmV0", "Ynl0ZXMgb2YgZm91bmQ="  # in base64


def test_ones_own_result_shows_the_videos_that_it_names(predicted):
    text, _ = pages(predicted)
    assert SECRET in text and FOUND in text


@pytest.mark.parametrize("change", ["unsigned", "another file", "another account", "by a link"])
def test_a_strangers_result_puts_no_file_from_elsewhere_into_a_page(predicted, change, monkeypatch):
    path = predicted / "detections.json"
    document = json.loads(path.read_text())
    videos = document["external_data"]["videos"]
    if change == "another account":
        monkeypatch.setenv("XDG_STATE_HOME", str(predicted / "state"))
    elif change == "another file":
        other = predicted.parent / "secret" / "other.mp4"
        Path(videos["secret"]["file"]).rename(other)
        videos["secret"]["file"] = str(other)
    else:
        del document["external_data"]["signature"]
    if change == "by a link":
        link = predicted / "link.mp4"
        link.symlink_to(videos["secret"]["file"])
        videos["secret"]["file"] = str(link)
    path.write_text(json.dumps(document))
    text, printed = pages(predicted)
    assert SECRET not in text and FOUND in text
    assert "files elsewhere that it names are left out" in printed and "--videos, or --trust" in printed
    assert SECRET in pages(predicted, "--trust")[0]
    assert SECRET in pages(predicted, "--videos", predicted.parent / "secret")[0] or change == "another file"
