"""Probing: metadata comes from decoded frames; every kind of damage is refused with a reason."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from ffmpeg import follow
from odd_video import FPS, shown, two_tracks, video
from packing_cases import write_video

from pipeline.packing.probe import FrameReader, Unreadable, probe
from pipeline.packing.transcode import EncodingSpec, transcode


def test_the_metadata_of_a_constant_video(tmp_path):
    metadata = probe(write_video(tmp_path / "a.mp4", range(0, 1000, 40), size=(96, 64)))
    assert (metadata.num_frames, metadata.fps, metadata.width, metadata.height) == (25, 25, 96, 64)
    assert metadata.codec == "h264" and metadata.steady and metadata.rotation == 0 and metadata.aspect == 1
    assert 0.96 < metadata.duration <= 1  # how long the last frame is shown is up to the encoder


def test_bytes_and_files_give_the_same_metadata(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    assert probe(path) == probe(path.read_bytes())


def test_times_count_from_where_the_file_begins(tmp_path):
    late = write_video(tmp_path / "late.mkv", range(5000, 5400, 40))
    assert [time for time, _ in FrameReader(late)][:3] == [0, Fraction(1, 25), Fraction(2, 25)]
    assert probe(late).begin == 0 and not probe(late).remarks
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "wanted"),
    [
        ("a.mp4", "libx264", "breaks off inside a frame"),
        ("a.avi", "mpeg4", "breaks off inside a frame|the file ends at"),
        ("a.mkv", "libx264", "File ended prematurely"),
        ("a.webm", "libvpx-vp9", "File ended prematurely"),
    ],
)
def test_a_strict_reader_refuses_a_file_cut_in_half_with_what_was_decoded(tmp_path, name, codec, wanted):
    path = write_video(tmp_path / name, range(150), codec=codec, clock=Fraction(1, 25))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # FFmpeg mutes a message that it has just given
        with pytest.raises(Unreadable, match=wanted) as caught:
            probe(path, strict=True)
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
    reason = "decoded 29 frames (2.90 s), then: Invalid data found when processing input (h264); more follows"
    assert [(name, text.partition(", so ")[0]) for name, text in refused] == [
        ("decord_corrupted.mp4", reason)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("offset", [0.2, 2.0])
def test_a_picture_that_begins_after_the_sound_is_shown_when_a_player_shows_it(tmp_path, name, offset):
    container = {"a.mp4": "mp4", "a.mkv": "matroska", "a.ts": "mpegts"}[name]
    stamps = range(round(offset * FPS), round(offset * FPS) + 25)
    frames, remarks = shown(video(tmp_path, container=container, stamps=stamps, sound_from=0.0))
    times = [time for time, _ in frames]
    # sound of Matroska and transport streams begins up to 22 ms early: the run-up of its encoder
    assert times == pytest.approx([offset + k / FPS for k in range(25)], abs=0.025)
    assert f"the first frame is shown at {times[0]:.2f} s" in remarks["begin"]


@pytest.mark.parametrize("sound_from", [0.08, 1.0])
def test_a_picture_that_begins_with_the_sound_or_before_it_begins_at_zero(tmp_path, sound_from):
    stamps = range(4, 29) if sound_from == 0.08 else range(25)  # 0.16 s: 0.08 s after the sound
    frames, remarks = shown(video(tmp_path, container="matroska", stamps=stamps, sound_from=sound_from))
    assert [number for _, number in frames] == list(range(25))
    assert frames[0][0] == 0 and remarks == {}


def test_frames_before_zero_are_hidden_as_players_hide_them(tmp_path):
    frames, remarks = shown(video(tmp_path, stamps=range(-10, 40), bf="0"))
    assert frames == [(number / FPS, number + 10) for number in range(40)] and remarks == {}


@pytest.mark.slow
def test_an_edit_list_hides_what_was_cut_and_keeps_the_times(tmp_path):
    """Cut by a tool that does not encode: the file holds frames from a key frame on, and hides the first
    ones.
    """
    data = bytearray(video(tmp_path, bf="0", stamps=range(60)))
    edit = data.index(b"elst") + 4
    _, entries, duration, start = struct.unpack_from(">4I", data, edit)
    assert entries == 1
    clock = FPS * 512  # the ticks in a second of this stream
    struct.pack_into(">2I", data, edit + 8, duration * 50 // 60, start + clock * 10 // FPS)
    frames, remarks = shown(bytes(data))
    assert [number for _, number in frames] == list(range(10, 60)) and remarks == {}
    assert [time for time, _ in frames] == pytest.approx([k / FPS for k in range(50)])


def test_the_default_track_of_two_is_taken(tmp_path):
    first = video(tmp_path, "libvpx-vp9", "webm", stamps=range(20))
    second = video(tmp_path, "libvpx-vp9", "webm", stamps=range(30), size=(32, 48))
    for name in ("two.mkv", "two.mp4"):
        for default, wanted in ((0, (20, 64)), (1, (30, 48))):
            metadata = probe(two_tracks([first, second], tmp_path / name, default=default))
            assert (metadata.num_frames, metadata.width) == wanted
            assert metadata.remarks == (
                ("tracks", f"video track {default + 1} of 2 is taken, as players do"),
            )


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "h264"), ("libx265", "hevc"), ("mpeg2video", "mpeg2video"), ("mpeg4", "m4v")],
)
def test_elementary_streams_take_the_rate_they_state(tmp_path, codec, container):
    frames, remarks = shown(video(tmp_path, codec, container, stamps=range(50), fps=24))
    assert frames == [(pytest.approx(number / 24), number) for number in range(50)]
    assert remarks == {"unstamped": "frames have no time stamps; as the stream says, 24 a second"}
    _, _, packed = transcode(tmp_path / "made.bin", EncodingSpec(fps=Fraction(0), short_side=0))
    assert packed.fps == 24 and packed.num_frames == 50


@pytest.mark.parametrize(("codec", "container"), [("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_an_elementary_stream_without_a_rate_names_a_command_that_gives_it_one(tmp_path, codec, container):
    path = tmp_path / "made.bin"
    options = {"x265-params": "log-level=none:vui-timing-info=0"} if codec == "libx265" else {}
    video(tmp_path, codec, container, stamps=range(50), **options)
    with pytest.raises(Unreadable, match="no time stamps; give it its rate: ffmpeg -r RATE -i IN") as error:
        probe(path)
    frames, remarks = shown(follow(str(error.value), path, tmp_path / "timed.mp4", RATE=20))
    assert frames == [(pytest.approx(number / 20), number) for number in range(50)] and remarks == {}


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2024-01-01T12:30:45.mp4", "pipe:0.mp4", "http:x.mp4", "concat:a|b.mp4", "file:a.mp4"):
        (tmp_path / name).write_bytes(video(tmp_path, stamps=range(5)))
        for path in (name, Path(name), tmp_path / name):
            assert probe(path).num_frames == 5
