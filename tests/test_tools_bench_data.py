"""bench-data: all decoders get the same clips, and show the same pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import call, refused
from painted_video import number_of, painted_video

from tools.bench_data import main, table
from tools.benchmarks.data import DataOptions, DataRow, av_clips, make_videos, our_clips

OPTIONS = DataOptions(
    videos=None, codecs=("h264",), count=1, seconds=4.0, short_side=32, clips=3, frames=4, stride=3, repeats=1
)
SMALL = ["--count", "1", "--seconds", "4", "--short-side", "32", "--clips", "2", "--repeats", "1"]

bench = partial(call, main, *SMALL)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_both_decoders_find_the_frames_that_were_asked_for(tmp_path, codec):
    (tmp_path / "a.mp4").write_bytes(painted_video(200, size=(48, 64), fps=25))
    (video,) = make_videos(replace(OPTIONS, videos=tmp_path, short_side=48), codec)
    assert video.clips.shape == (3, 4) and (np.diff(video.clips) == 3).all()
    for clips in (our_clips(video), av_clips(video)):
        assert clips.shape == (3, 4, 48, 64, 3)
        assert [[number_of(frame) for frame in clip] for clip in clips] == video.clips.tolist()


@pytest.mark.slow
def test_rows_name_every_decoder_and_leave_out_what_is_not_there(tmp_path):
    path = tmp_path / "rows.json"
    result = bench("--codec", "vp9", "--out", str(path))
    assert result.exit_code == 0, result.output
    rows = {row["decoder"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["leantad", "PyAV loop", "decord", "torchcodec"]
    assert rows["leantad"]["times_ours"] == 1 and rows["leantad"]["most_off"] == 0
    assert rows["PyAV loop"]["clips"] == 2 and rows["PyAV loop"]["clips_per_second"] > 0
    assert all(decoder in result.output for decoder in rows)
    missing = table([DataRow("vp9", "decord", "not installed")]).splitlines()[-1]
    assert missing.split()[-5:] == ["-"] * 5


def test_own_videos_are_packed_first(tmp_path):
    (tmp_path / "a.mkv").write_bytes(painted_video(60, size=(48, 64), container="matroska", fps=25))
    (tmp_path / "notes.txt").write_text("no video")
    result = bench("--videos", str(tmp_path), "--codec", "h264")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "100"], "--short-side: got 100, want a multiple of 16"),
        (["--frames", "100"], "a clip takes 100 frames, a video has 60"),
        (["--videos", "."], "--videos: no video in"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(main, *SMALL, *options)
