"""Probing: metadata comes from decoded frames; every kind of damage is refused with a reason."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from packing_cases import write_video

from pipeline.packing.probe import FrameReader, Unreadable, probe


def test_the_metadata_of_a_constant_video(tmp_path):
    metadata = probe(write_video(tmp_path / "a.mp4", range(0, 1000, 40), size=(96, 64)))
    assert (metadata.num_frames, metadata.fps, metadata.width, metadata.height) == (25, 25, 96, 64)
    assert metadata.codec == "h264" and metadata.steady and metadata.rotation == 0 and metadata.aspect == 1
    assert 0.96 < metadata.duration <= 1  # how long the last frame is shown is up to the encoder


def test_bytes_and_files_give_the_same_metadata(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    assert probe(path) == probe(path.read_bytes())


def test_times_count_from_the_first_displayed_frame(tmp_path):
    late = write_video(tmp_path / "late.mkv", range(5000, 5400, 40))
    assert [time for time, _ in FrameReader(late)][:3] == [0, Fraction(1, 25), Fraction(2, 25)]
    assert probe(late).duration == probe(write_video(tmp_path / "a.mkv", range(0, 400, 40))).duration


def test_an_uneven_video_is_not_called_steady(tmp_path):
    metadata = probe(write_video(tmp_path / "a.mp4", [0, 40, 80, 400, 440]))
    assert metadata.num_frames == 5 and not metadata.steady
    rounded = [round(number * 1000 / 30) for number in range(60)]  # Matroska's milliseconds are even enough
    metadata = probe(write_video(tmp_path / "a.mkv", rounded))
    assert metadata.steady and metadata.fps == 30


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_the_rotation_is_reported_counter_clockwise(tmp_path, turn):
    assert probe(write_video(tmp_path / "a.mp4", range(0, 200, 40), rotation=turn)).rotation == turn


def test_an_odd_angle_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(0, 200, 40), rotation=30)
    with pytest.raises(Unreadable, match=r"turned by (29|30) degrees"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "codec", "wanted"),
    [
        ("a.mp4", "libx264", "breaks off inside a frame"),
        ("a.avi", "mpeg4", "breaks off inside a frame|the file ends at"),
        ("a.mkv", "libx264", "File ended prematurely"),
        ("a.webm", "libvpx-vp9", "File ended prematurely"),
    ],
)
def test_a_file_cut_in_half_is_refused_with_what_was_decoded(tmp_path, name, codec, wanted):
    path = write_video(tmp_path / name, range(150), codec=codec, clock=Fraction(1, 25))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # FFmpeg mutes a message that it has just given
        with pytest.raises(Unreadable, match=wanted) as caught:
            probe(path)
        assert "decoded " in str(caught.value) and str(path) in str(caught.value)


def test_an_mp4_without_its_index_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mov", range(0, 1000, 40))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov")])
    with pytest.raises(Unreadable, match="not a readable video"):
        probe(path)


def test_damaged_frames_are_refused(shared_real, tmp_path):
    data = bytearray((shared_real / "videos" / "torchcodec_testsrc2.mp4").read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 300, 7):
        data[position] ^= 0xFF
    with pytest.raises(Unreadable, match=r"decoded \d+ frames .*h264"):
        probe(bytes(data))


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("a letter" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reasons = {"empty.mp4": "empty", "text.mp4": "not a readable video", "sound.mp4": "no video stream"}
    for name, reason in reasons.items():
        with pytest.raises(Unreadable, match=reason):
            probe(tmp_path / name)


@pytest.mark.slow
def test_real_files_have_the_frames_and_times_that_pyav_decodes(shared_real):
    refused = []
    for path in sorted((shared_real / "videos").iterdir()):
        try:
            metadata = probe(path)
        except Unreadable as error:
            refused.append((path.name, error.reason))
            continue
        with av.open(str(path)) as container:
            frames = [(frame.pts, frame.duration) for frame in container.decode(video=0)]
            clock = container.streams.video[0].time_base
        stamps = sorted(pts for pts, _ in frames)
        assert metadata.num_frames == len(frames), path.name
        assert metadata.duration == (stamps[-1] - stamps[0] + frames[-1][1]) * clock, path.name
    reason = "decoded 28 frames (2.80 s), then: Invalid data found when processing input (h264)"
    assert refused == [("decord_corrupted.mp4", reason)]
