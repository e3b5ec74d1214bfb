"""Packets of joined recordings: their marks are no damage, and a clock that starts anew goes on."""

from __future__ import annotations

from fractions import Fraction

import pytest
from odd_video import FPS, remuxed, shown, video
from packing_cases import write_video

from pipeline.packing.probe import Unreadable, probe

JOINED = [("libx264", "mpegts"), ("libx265", "mpegts"), ("mpeg2video", "mpegts")]
RESTARTED = [*JOINED, ("libx264", "matroska"), ("libvpx-vp9", "webm")]


@pytest.mark.parametrize(("codec", "container"), JOINED)
def test_segments_joined_end_to_end_have_all_frames_and_a_remark(tmp_path, codec, container):
    """HLS segments and cuts of a recorder: stamps go on, the numbers of the stream's parts begin anew."""
    parts = [
        remuxed(video(tmp_path, codec, container, stamps=range(24 * part, 24 * part + 24)), container)
        for part in range(3)
    ]
    frames, remarks = shown(b"".join(parts), strict=True)
    assert [number for _, number in frames] == 3 * list(range(24))
    assert [time for time, _ in frames] == pytest.approx([k / FPS for k in range(72)], abs=1.01 / FPS)
    assert "marked as damaged; the frames that are there decode" in remarks["flagged"]


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container"), RESTARTED)
def test_a_clock_that_starts_anew_goes_on_after_what_came_before(tmp_path, codec, container):
    first = video(tmp_path, codec, container, stamps=range(50))
    frames, remarks = shown(first + video(tmp_path, codec, container, stamps=range(60)), strict=True)
    assert [number for _, number in frames] == [*range(50), *range(60)]
    assert [time for time, _ in frames] == pytest.approx([k / FPS for k in range(110)], abs=1.01 / FPS)
    assert remarks["joined"].startswith("time stamps jump back (1)")


def test_a_clock_that_jumps_ahead_is_a_pause(tmp_path):
    stamps = [*range(50), *range(1050, 1100)]
    frames, remarks = shown(video(tmp_path, container="mpegts", stamps=stamps))
    assert frames == [(pytest.approx(stamp / FPS), number) for number, stamp in enumerate(stamps)]
    assert remarks == {"pause": "no new frame for 40.04 s from 1.96 s on"}


def test_pauses_between_frames_that_are_stored_in_another_order_are_no_jump(tmp_path):
    stamps = [k for part in range(6) for k in range(90 * part, 90 * part + 12)]
    for container in ("mp4", "matroska", "mpegts", "flv"):
        frames, remarks = shown(video(tmp_path, container=container, stamps=stamps))
        assert frames == [(pytest.approx(stamp / FPS, abs=1e-3), n) for n, stamp in enumerate(stamps)]
        assert list(remarks) == ["pause"]


def test_a_marked_packet_whose_frame_is_gone_is_damage(tmp_path):
    """In a transport stream, all parts of a picture but the first are lost."""
    path = write_video(tmp_path / "a.ts", range(72), clock=Fraction(1, FPS), size=(128, 96), crf="4")
    data = path.read_bytes()
    parts = [data[at : at + 188] for at in range(0, len(data), 188)]
    begins = [n for n, part in enumerate(parts) if part[1] & 0x40 and part[1] & 0x1F == 1 and part[2] == 0]
    start, end = begins[40:42]
    with pytest.raises(Unreadable, match="more follows"):
        probe(b"".join(parts[: start + 1] + parts[end:]))
