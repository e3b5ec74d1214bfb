"""bench-predict: the plain loop sees what predict sees, and every part is timed."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, refused
from painted_video import number_of, painted_video
from untrained_run import PACKED, checkpoint

from pipeline.loader import Loader
from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import SUBSET, SingleVideo, prepare
from pipeline.packing.transcode import EncodingSpec
from pipeline.settings import DataSettings
from tools.bench_predict import main
from tools.benchmarks.plain_loop import plain_batches
from tools.benchmarks.predict import Clock, agreement

SETTINGS = DataSettings(
    shards="-", num_clips=4, clip_frames=3, window_seconds=1.5, resize=(24, 24), crop=24, stride_frames=2
)


def numbers(inputs: torch.Tensor) -> np.ndarray:
    """What is painted in the frames of a batch of one window, (N, L)."""
    clips = inputs[0].permute(0, 2, 3, 4, 1).numpy()  # (N, L, H, W, 3)
    return np.array([[number_of(frame) for frame in clip] for clip in clips])


def seen_by_predict(file: Path, spec: EncodingSpec | None, settings: DataSettings) -> list:
    """The batches of evaluation, of the file as predict encodes it."""
    ((video, packed),) = [
        (video, packed.read_bytes()) for video, packed in prepare({"a": file}, spec, workers=1)
    ]
    kept = file.with_suffix(".packed")
    kept.write_bytes(packed)
    source = SingleVideo(video, PackedFile(kept, video.num_frames), ("run",))
    options = {"batch_size": 1, "seed": 0, "rank": 0, "world_size": 1, "remark": print}
    loader = Loader(source, settings, subset=SUBSET, device=torch.device("cpu"), training=False, **options)
    batches = list(loader)
    loader.close()
    return batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "most_apart"),
    [
        (None, 0),
        # of two frames that are on screen for a part of a packed one's time, packing may take the other
        (EncodingSpec("vp9", Fraction(10), short_side=48, gop=8), 1),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"stride_frames": None}, {"window_seconds": None}])
def test_the_plain_loop_shows_the_network_what_predict_shows_it(tmp_path, spec, most_apart, changes):
    file, settings = tmp_path / "a.mp4", SETTINGS.model_copy(update=changes)
    file.write_bytes(painted_video(80, size=(48, 48), fps=25))
    expected = seen_by_predict(file, spec, settings)
    found = list(plain_batches(file, "a", settings, fps=spec.fps if spec else Fraction(0)))
    assert len(found) == len(expected) == (1 if "window_seconds" in changes else 4)
    for plain, ours in zip(found, expected, strict=True):
        assert torch.equal(plain.windows, ours.windows) and torch.equal(plain.ends, ours.ends)
        assert plain.inputs.shape == ours.inputs.shape
        assert abs(numbers(plain.inputs) - numbers(ours.inputs)).max() <= most_apart


def test_a_file_with_fewer_frames_than_it_states_repeats_the_last(tmp_path):
    file = tmp_path / "a.mp4"
    data = painted_video(50, size=(48, 48), fps=25)
    file.write_bytes(data)
    settings = SETTINGS.model_copy(update={"window_seconds": None, "num_clips": 1, "clip_frames": 200})
    (batch,) = plain_batches(file, "a", settings.model_copy(update={"stride_frames": 1}), fps=Fraction(0))
    shown = numbers(batch.inputs)[0]
    assert shown.min() == 0 and shown.max() == 49 and (np.diff(shown) >= 0).all()


def test_windows_behind_the_end_of_a_file_that_was_cut_show_its_last_frame(tmp_path):
    file, data = tmp_path / "a.mkv", painted_video(200, size=(48, 48), fps=25, container="matroska")
    file.write_bytes(data[: len(data) // 4])
    shown = [numbers(batch.inputs) for batch in plain_batches(file, "a", SETTINGS, fps=Fraction(0))]
    last = max(clips.max() for clips in shown)
    assert len(shown) > 6 and 10 < last < 150 and (shown[-1] == last).all()


def test_detections_agree_by_segment_and_label():
    one = {"segment": [0.0, 2.0], "label": "run", "score": 1.0}
    half = {"segment": [1.0, 2.0], "label": "run", "score": 0.5}
    other = {"segment": [0.0, 2.0], "label": "jump", "score": 0.5}
    assert agreement({"a": [one]}, {"a": [half, one, other]}) == 1.0
    assert agreement({"a": [one]}, {"a": [half, other]}) == 0.5
    assert agreement({"a": [one, one]}, {"a": [other]}) == 0.0
    assert agreement({"a": []}, {"a": [one]}) == 1.0


def test_the_least_time_of_a_part_counts_and_that_of_several_videos_adds_up():
    total = Clock(torch.device("cpu"))
    for seconds in (3.0, 5.0):
        clock = Clock(torch.device("cpu"))
        times = iter([(0.0, 0.0), (seconds, 1.0), (10.0, 2.0), (11.0, 4.0)])
        clock._now = lambda times=times: next(times)
        assert [clock.time("decode", lambda: 7), clock.time("decode", lambda: 8, times=2)] == [7, 8]
        assert clock.least == {"decode": (2.0, 1.0)}
        total.add(clock)
    assert total.least == {"decode": (4.0, 2.0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packing", "sets"),
    [({"copy": True}, ()), (PACKED, ("--set", "data.pad_short_videos=true"))],
    ids=["kept bytes", "encoded again, masked"],
)
def test_every_part_has_a_row_and_the_plain_loop_finds_the_same(tmp_path, packing, sets):
    run, videos = checkpoint(tmp_path / "run", packing), tmp_path / "videos"
    videos.mkdir()
    for number in range(2):
        (videos / f"{number}.mp4").write_bytes(painted_video(40 + number, size=(24, 24), fps=10, gop=8))
    path = tmp_path / "rows.json"
    result = call(main, videos, "--checkpoint", run, "--device", "cpu", "--repeats", 1, "--out", path, *sets)
    assert result.exit_code == 0, result.output
    document = json.loads(path.read_text())
    rows = {row["part"]: row for row in document["rows"]}
    parts = ["re-encode", "decode", "encoder", "detector", "post-process"]
    assert list(rows) == ["predict", "plain loop", *parts]
    assert all(row["seconds"] > 0 and row["video_seconds_per_second"] > 0 for row in rows.values())
    assert rows["plain loop"]["times_plain"] == 1 and rows["predict"]["times_plain"] > 0
    assert document["video_seconds"] == pytest.approx(8.1)
    assert document["agreement"] > (0.999 if packing.get("copy") else 0.5)
    assert all(part in result.output for part in rows)


@pytest.mark.slow
def test_what_cannot_be_measured_is_one_line(tmp_path):
    run = checkpoint(tmp_path / "run", PACKED)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for arguments, message in (
        ((tmp_path / "gone.mp4",), "gone.mp4: no such file"),
        ((tmp_path / "bad.mp4",), "bad.mp4: "),
        ((tmp_path / "bad.mp4", "--out", tmp_path / "no" / "rows.json"), "rows.json"),
    ):
        assert message in refused(main, *arguments, "--checkpoint", run, "--device", "cpu")
