"""Probing: facts come from decoded frames; every kind of damage is refused with a reason."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from packing_cases import write_video

from pipeline.packing.probe import FrameReader, Unreadable, probe


def test_the_facts_of_a_constant_video(tmp_path):
    facts = probe(write_video(tmp_path / "a.mp4", range(0, 1000, 40), size=(96, 64)))
    assert (facts.num_frames, facts.fps, facts.width, facts.height) == (25, 25, 96, 64)
    assert facts.codec == "h264" and facts.steady and facts.rotation == 0 and facts.aspect == 1
    assert 0.96 < facts.duration <= 1  # how long the last frame is shown is the encoder's word


def test_bytes_and_files_give_the_same_facts(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    assert probe(path) == probe(path.read_bytes())


def test_times_count_from_the_first_displayed_frame(tmp_path):
    late = write_video(tmp_path / "late.mkv", range(5000, 5400, 40))
    assert [time for time, _ in FrameReader(late)][:3] == [0, Fraction(1, 25), Fraction(2, 25)]
    assert probe(late).duration == probe(write_video(tmp_path / "a.mkv", range(0, 400, 40))).duration


def test_an_uneven_video_is_not_called_steady(tmp_path):
    facts = probe(write_video(tmp_path / "a.mp4", [0, 40, 80, 400, 440]))
    assert facts.num_frames == 5 and not facts.steady
    rounded = [round(number * 1000 / 30) for number in range(60)]  # Matroska's milliseconds are even enough
    facts = probe(write_video(tmp_path / "a.mkv", rounded))
    assert facts.steady and facts.fps == 30


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_the_rotation_is_reported_counter_clockwise(tmp_path, turn):
    assert probe(write_video(tmp_path / "a.mp4", range(0, 200, 40), rotation=turn)).rotation == turn


def test_an_odd_angle_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(0, 200, 40), rotation=30)
    with pytest.raises(Unreadable, match=r"turned by (29|30) degrees"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "codec", "words"),
    [
        ("a.mp4", "libx264", "breaks off inside a frame"),
        ("a.avi", "mpeg4", "breaks off inside a frame|the file ends at"),
        ("a.mkv", "libx264", "File ended prematurely"),
        ("a.webm", "libvpx-vp9", "File ended prematurely"),
    ],
)
def test_a_file_cut_in_half_is_refused_with_what_was_decoded(tmp_path, name, codec, words):
    path = write_video(tmp_path / name, range(150), codec=codec, clock=Fraction(1, 25))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # FFmpeg mutes a message that it has just given
        with pytest.raises(Unreadable, match=words) as caught:
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
    for place in range(len(data) // 2, len(data) // 2 + 300, 7):
        data[place] ^= 0xFF
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
    words = {"empty.mp4": "empty", "text.mp4": "not a readable video", "sound.mp4": "no video stream"}
    for name, reason in words.items():
        with pytest.raises(Unreadable, match=reason):
            probe(tmp_path / name)


@pytest.mark.slow
def test_real_files_have_the_frames_and_times_that_pyav_decodes(shared_real):
    refused = []
    for path in sorted((shared_real / "videos").iterdir()):
        try:
            facts = probe(path)
        except Unreadable as error:
            refused.append((path.name, error.reason))
            continue
        with av.open(str(path)) as container:
            frames = [(frame.pts, frame.duration) for frame in container.decode(video=0)]
            clock = container.streams.video[0].time_base
        stamps = sorted(pts for pts, _ in frames)
        assert facts.num_frames == len(frames), path.name
        assert facts.duration == (stamps[-1] - stamps[0] + frames[-1][1]) * clock, path.name
    reason = "decoded 28 frames (2.80 s), then: Invalid data found when processing input (h264)"
    assert refused == [("decord_corrupted.mp4", reason)]
