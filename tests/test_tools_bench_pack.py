"""bench-pack: all packers make the same frames of the same files with the same settings."""

from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from commands import call, refused
from painted_video import number_of, painted_video

from pipeline.packing.encoder import ENCODERS
from tools.bench_pack import main, table
from tools.benchmarks.pack import PackRow, Target, av_loop, ffmpeg_command

SMALL = ["--count", "1", "--seconds", "2", "--short-side", "32", "--repeats", "1"]

bench = partial(call, main, *SMALL)


@pytest.fixture
def ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        message = "ffmpeg is not here: bench-pack compares with it"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return program


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_the_plain_loop_shows_every_second_frame_at_half_the_rate(tmp_path, codec):
    source, out = tmp_path / "a.mp4", tmp_path / "b.mp4"
    source.write_bytes(painted_video(60, size=(96, 128), fps=30))
    av_loop(source, out, Target(codec, Fraction(15), 64, 48, 32))
    assert shown_in(out) == list(range(0, 60, 2))


def shown_in(file: Path) -> list[int]:
    with av.open(str(file)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_ffmpeg_gets_every_option_of_our_encoder(codec):
    words = ffmpeg_command("ffmpeg", Path("a.mp4"), Path("b.mp4"), Target(codec, Fraction(15), 64, 48, 32))
    name, options = ENCODERS[codec]
    given = dict(zip(words, words[1:], strict=False))
    assert given["-c:v"] == name and given["-g"] == given["-keyint_min"] == "32"
    assert all(given["-b:v" if option == "b" else f"-{option}"] == value for option, value in options.items())
    assert given["-vf"].startswith("fps=15,scale=64:48:") and Path(given["-i"]).is_absolute()


def test_rows_name_every_packer_and_all_make_as_many_frames(tmp_path, ffmpeg):
    path = tmp_path / "rows.json"
    result = bench("--out", str(path))
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    assert [(row["codec"], row["packer"]) for row in rows] == [
        (codec, packer) for codec in ("h264", "vp9") for packer in ("leantad", "PyAV loop", "FFmpeg")
    ]
    assert all(row["frames"] == 30 and row["cpu_seconds"] > 0 for row in rows)
    for first in (0, 3):
        sizes = np.array([row["kilobytes"] for row in rows[first : first + 3]])
        assert rows[first]["times_ours"] == 1 and sizes.max() <= sizes.min() + max(2, sizes.min() // 10)


def test_without_ffmpeg_its_row_has_no_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = bench("--codec", "h264")
    assert result.exit_code == 0, result.output
    last = result.output.splitlines()[-1]
    assert last.split() == ["h264", "FFmpeg", "not", "installed", "-", "-", "-", "-"]
    assert table([PackRow("h264", "FFmpeg", "not installed")]).splitlines()[-1].split() == last.split()


def test_own_videos_keep_their_rate_where_it_is_asked_for(tmp_path):
    (tmp_path / "a.mkv").write_bytes(painted_video(50, size=(48, 64), container="matroska", fps=25))
    result = bench("--videos", str(tmp_path), "--codec", "vp9", "--fps", "0", "--json")
    assert result.exit_code == 0, result.output
    assert {row["frames"] for row in json.loads(result.stdout)["rows"]} <= {50, None}


def test_what_ffmpeg_says_is_passed_on(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    answers = "[ $1 = -version ] || { echo no luck >&2; exit 3; }"
    program.write_text(f"#!/bin/sh\necho ffmpeg version 7.1-x Copyright\n{answers}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    line = refused(main, *SMALL, "--codec", "h264")
    assert "built-in 0.mp4: " in line and line.endswith("ffmpeg ends with exit code 3: no luck\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "101"], "--short-side: got 101, want an even number"),
        (["--videos", "."], "--videos: no video in"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(main, *SMALL, *options)
