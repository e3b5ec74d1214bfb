"""The script that makes the README's picture: which video it shows, and that it makes a picture of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner
from painted_video import painted_video
from viewer_cases import found, video

from pipeline.annotations import Action
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo
from train.detections import write_detections

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "make_picture.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_picture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_video_with_the_most_classes_and_actions_is_shown(script):
    videos = {
        "many": video("many", (0, 1, "run"), (1, 2, "run"), (2, 3, "run")),
        "b": video("b", (0, 1, "run"), (1, 2, "jump"), (2, 3, "run")),
        "a": video("a", (0, 1, "run"), (1, 2, "jump")),
        "c": video("c", (0, 1, "run"), (1, 2, "jump"), (2, 3, "jump")),
    }
    assert script.example_of(videos) == "b"


@pytest.mark.slow  # a Chromium of its own
@pytest.mark.usefixtures("browser_programs")
def test_a_picture_is_made_of_a_run_and_its_data_set(script, tmp_path):
    metadata = {"fps": 25.0, "num_frames": 50, "width": 64, "height": 64, "codec": "vp9"}
    actions = (Action(0.5, 1.5, "run"),)
    packed = PackedVideo(
        "a", "validation", 2.0, **metadata, actions=actions, shard=None, reject=None, source="a"
    )
    videos, tars = pack_samples(tmp_path / "data", [(packed, painted_video(50))])
    write_dataset(tmp_path / "data", classes=["run"], videos=videos, shards=tars, packing={})
    (tmp_path / "run").mkdir()
    write_detections(tmp_path / "run" / "detections.json", {"a": [found(0.5, 1.5, "run", 0.9)]}, metadata={})
    paths = [str(tmp_path / name) for name in ("run", "data", "viewer.png")]
    result = CliRunner().invoke(script.main, [paths[0], paths[1], "--out", paths[2]])
    assert result.exit_code == 0, result.output
    png = Path(paths[2]).read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") == script.WIDTH
