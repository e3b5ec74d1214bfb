"""Bad input at the command line: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_run import make_shards_of, run

from tools.make_shards import main as make_shards
from train.eval import main as evaluate


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """raw/videos, raw/annotations.json and shards of six small videos; never changed by a test."""
    folder = tmp_path_factory.mktemp("good")
    make_shards_of(folder)
    return folder


def assert_refused(result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in parts:
        assert word in lines[0], lines[0]


def pack(videos: Path, annotations: Path, out: Path, *options: str):
    return CliRunner().invoke(
        make_shards, [str(videos), str(annotations), "--out", str(out), "--copy", "--quiet", *options]
    )


def annotation_file(folder: Path, text: str | dict) -> Path:
    path = folder / "annotations.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def one_video(made: Path, segment: list[float], label: str = "swing") -> dict:
    key = sorted((made / "raw" / "videos").iterdir())[0].stem
    actions = [{"segment": segment, "label": label}]
    return {"database": {key: {"subset": "training", "annotations": actions}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, parts",
    [
        ('{"database": {"a": ', ["annotations.json", "line 1"]),
        ('{"database": {}}', ["annotations.json"]),
        ('{"videos": []}', ["annotations.json", "database"]),
    ],
)
def test_wrong_json_and_an_empty_data_set(made, tmp_path, text, parts):
    out = tmp_path / "shards"
    assert_refused(pack(made / "raw" / "videos", annotation_file(tmp_path, text), out), *parts)
    assert not (out / "dataset.json").exists()


@pytest.mark.slow
def test_a_start_after_its_end(made, tmp_path):
    path = annotation_file(tmp_path, one_video(made, [1.5, 0.5]))
    assert_refused(pack(made / "raw" / "videos", path, tmp_path / "shards"), "1.5", "0.5")
    assert not (tmp_path / "shards" / "dataset.json").exists()


@pytest.mark.slow
def test_an_unknown_class(made, tmp_path):
    (tmp_path / "classes.txt").write_text("swing\n")
    path = annotation_file(tmp_path, one_video(made, [0.5, 1.5], "swingg"))
    result = pack(
        made / "raw" / "videos", path, tmp_path / "shards", "--classes", str(tmp_path / "classes.txt")
    )
    assert_refused(result, "swingg")


@pytest.mark.parametrize(("share", "options"), [(0.0, []), (0.5, ["--strict"])])
def test_a_zero_length_and_a_truncated_video_alone(made, tmp_path, share, options):
    source = sorted((made / "raw" / "videos").iterdir())[0]
    videos = tmp_path / "videos"
    videos.mkdir()
    data = source.read_bytes()
    (videos / source.name).write_bytes(data[: int(share * len(data))])
    out = tmp_path / "shards"
    result = pack(videos, annotation_file(tmp_path, one_video(made, [0.5, 1.5])), out, *options)
    assert_refused(result, source.stem)
    assert not (out / "dataset.json").exists() and not list(out.glob("*.tar"))


@pytest.mark.slow
def test_a_shard_cut_in_half(made, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(made / "shards", shards)
    tar = shards / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert_refused(run(shards, tmp_path / "run"), "00000.tar")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_data_set_that_is_not_there(tmp_path):
    assert_refused(run(tmp_path / "nowhere", tmp_path / "run"), "nowhere")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unknown_setting_and_a_ratio_out_of_range(made, tmp_path):
    refused = run(made / "shards", tmp_path / "run", encoder__clip_ration=0.3)
    assert_refused(refused, "clip_ration", "clip_ratio")
    assert_refused(run(made / "shards", tmp_path / "run", encoder__clip_ratio=1.5), "clip_ratio", "1.5")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model(made, tmp_path):
    out = tmp_path / "run"
    assert run(made / "shards", out, run__epochs=1).exit_code == 0
    result = CliRunner().invoke(
        evaluate,
        ["--checkpoint", str(out), "--set", "detector.neck_dim=32", "--out", str(tmp_path / "d.json")],
    )
    assert_refused(result, "detector", "16", "32")
    assert not (tmp_path / "d.json").exists()
    (out / "checkpoints" / "last" / "model.safetensors").write_bytes(b"no tensors")
    result = CliRunner().invoke(
        evaluate, ["--checkpoint", str(out / "checkpoints" / "last"), "--out", str(tmp_path / "d.json")]
    )
    assert_refused(result, "model.safetensors")
