"""predict --format: what was found, in the files of labelling tools, beside what is always written."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from label_cases import labels_of, read_text_as
from odd_video import FPS, video
from painted_video import painted_video
from untrained_run import PACKED, checkpoint

from pipeline.packing.probe import probe
from tools.labels.predictions import CHOICES, labelled_video, write_formats
from tools.predict import main as predict
from train.cli import Output
from train.detections import VideoDetections

FOUND = (
    {"segment": [0.25, 0.75], "label": "run", "score": 0.9},
    {"segment": [0.5, 1.0], "label": "jump\nhigh", "score": 0.4},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run"), PACKED)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "first.webm").write_bytes(painted_video(30, size=(48, 36), container="webm", fps=15))
    (folder / "second.webm").write_bytes(painted_video(25, size=(48, 36), container="webm", fps=25))
    (folder / "torn.webm").write_bytes(b"no video")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(predict, [str(argument) for argument in arguments])


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


KEYS = ("first", "second")
ALWAYS = {"detections.json", "detections.csv", "first.srt", "second.srt"}


@pytest.mark.slow
def test_predict_writes_every_format_beside_what_it_always_writes(run, videos, tmp_path):
    options = [part for name in CHOICES for part in ("--format", name)]
    result = call(videos, "--checkpoint", run, "--out", tmp_path / "out", "--top", 5, *options, "--json")
    assert result.exit_code == 1, result.output  # the torn file
    suffixes = {"boris", "boris.csv", "boris.tsv", "via.json", "via.csv", "label-studio.json", "frames.csv"}
    one_each = {f"{key}.{each}" for key in KEYS for each in ("eaf", "xml", "txt", "vtt")}
    one_each |= {"first.chapters.txt", "second.chapters.txt"}
    of_all = {f"detections.{suffix}" for suffix in (*suffixes, "events-per-hour.csv")}
    assert written(tmp_path / "out") == ALWAYS | one_each | of_all
    document = json.loads(result.stdout)
    assert set(document["formats"]) == set(CHOICES)
    assert document["formats"]["elan"] == [
        str(tmp_path / "out" / f"{key}.eaf") for key in ("first", "second")
    ]
    assert "warning: --format elan: 10 scores not carried: ELAN has no field for them\n" in result.stderr
    best = json.loads((tmp_path / "out" / "detections.json").read_text())["results"]["first"]
    (video,), _ = read_text_as("elan", (tmp_path / "out" / "first.eaf").read_text(), "first.eaf")
    assert video.name == str(videos / "first.webm")
    assert sorted(item.label for item in video.labels) == sorted(each["label"] for each in best)
    frames = (tmp_path / "out" / "detections.frames.csv").read_text().splitlines()
    assert {line.split(",")[0]: line.split(",")[-1] for line in frames[1:]} == {
        "first.webm": "15",
        "second.webm": "25",
    }


@pytest.mark.slow
def test_without_format_predict_writes_what_it_did(run, videos, tmp_path):
    result = call(videos / "first.webm", "--checkpoint", run, "--out", tmp_path / "out")
    assert result.exit_code == 0 and written(tmp_path / "out") == ALWAYS - {"second.srt"}
    assert "detections.json, detections.csv, subtitles (.srt)\n" in result.stdout


def test_files_that_are_there_are_kept_before_anything_is_detected(run, videos, tmp_path):
    (tmp_path / "first.eaf").write_text("mine")
    result = call(videos / "first.webm", "--checkpoint", run, "--out", tmp_path, "--format", "elan")
    assert result.exit_code == 2 and "first.eaf: exists; --force replaces it" in result.stderr
    assert written(tmp_path) == {"first.eaf"} and (tmp_path / "first.eaf").read_text() == "mine"


def test_a_format_that_cannot_be_written_is_named_and_the_others_are_written(tmp_path, capsys):
    found = [VideoDetections("a", tmp_path / "a.h264", 9.0, FOUND)]  # no such file, so no rate
    files, complete = write_formats(tmp_path, found, ["frames", "audacity"], Output())
    assert not complete and list(files) == ["audacity"]
    assert (tmp_path / "a.txt").read_text() == "0.25\t0.75\trun\n0.5\t1\tjump high\n"
    message = "error: --format frames: not written: a.h264: its frame rate is not known"
    assert message in capsys.readouterr().err


def test_videos_of_one_feature_file_are_labelled_under_their_own_names(tmp_path):
    both = [
        VideoDetections(key, tmp_path / "all.h5", 9.0, FOUND, source=f"{key}.webm", video_file=file)
        for key, file in (("monday", None), ("tuesday", "days/tuesday.webm"))
    ]
    assert [labelled_video(video).name for video in both] == ["monday.webm", "days/tuesday.webm"]
    files, complete = write_formats(tmp_path, both, ["elan", "boris-csv"], Output(quiet=True))
    assert complete and [path.name for path in files["elan"]] == ["monday.eaf", "tuesday.eaf"]
    (video,), _ = read_text_as("elan", files["elan"][0].read_text(), "monday.eaf")
    assert video.name == "monday.webm"
    assert not any("all.h5" in path.read_text() for paths in files.values() for path in paths)


def test_cvat_counts_the_frames_of_a_video_whose_picture_begins_after_its_sound(tmp_path):
    path = tmp_path / "late.mp4"
    path.write_bytes(video(tmp_path, stamps=range(2 * FPS, 3 * FPS), sound_from=0.0))
    late = VideoDetections("late", path, 3.0, ({"segment": [2.2, 2.6], "label": "run", "score": 0.9},))
    assert labelled_video(late).begin == 2 and probe(path).begin == 2
    write_formats(tmp_path, [late], ["cvat", "frames"], Output(quiet=True))
    (made,), _ = read_text_as("cvat", (tmp_path / "late.xml").read_text(), "late.xml", fps=Fraction(FPS))
    assert labels_of(made) == [(0.2, 0.6, "run")]
    assert "late.mp4,run,55,65,25" in (tmp_path / "detections.frames.csv").read_text()  # from 0 s on


def test_a_video_keeps_its_key_and_the_ending_of_its_file(videos):
    video = VideoDetections("monday/first", videos / "first.webm", 2.0, FOUND)
    made = labelled_video(video)
    assert (made.name, made.fps, made.duration) == ("monday/first.webm", Fraction(15), 2.0)
    assert [(item.label, item.score) for item in made.labels] == [("run", 0.9), ("jump high", 0.4)]
    assert labelled_video(replace(video, key="first.webm")).name == "first.webm"
