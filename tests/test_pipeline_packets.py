"""Packets: which ones a set of frames needs."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_video import painted_video

from pipeline.nal_units import begins_anew
from pipeline.packets import cut, open_packets, packet_runs, packets_needed, split


def test_needed_packets_reach_from_the_key_frame_to_the_frame():
    assert packets_needed([0, 4, 8], np.array([5, 6, 9])).tolist() == [4, 5, 6, 8, 9]
    assert packets_needed([0], np.array([2])).tolist() == [0, 1, 2]
    assert packets_needed([3], np.array([1, 4])).tolist() == [0, 1, 3, 4]  # no key frame before 1


VIDEO = painted_video(48, gop=8)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 47), min_size=1))
def test_needed_packets_are_those_of_the_runs(wanted):
    frames = np.array(sorted(wanted))
    with open_packets(VIDEO, 48) as video:
        runs = [range(first, last + 1) for first, last in packet_runs(video, frames)]
        assert packets_needed(video.keyframes, frames).tolist() == [index for run in runs for index in run]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libvpx-vp9", None),
        ("libx264", None),
        ("libx264", {"x264-params": "scenecut=0:open-gop=1:bframes=3:ref=4"}),
        ("libx265", None),
        ("libx265", {"x265-params": "scenecut=0:open-gop=1:bframes=4:log-level=none"}),
        ("mpeg4", {"bf": "2"}),
    ],
)
@pytest.mark.parametrize("wanted", [[40, 41, 90], [0], [119], [5, 100], list(range(30, 80))])
def test_a_cut_names_the_packets_of_the_same_frames_and_begins_anew_at_each_start(codec, options, wanted):
    data = painted_video(120, codec=codec, options=options)
    with open_packets(data, 120) as video:
        part, numbers = cut(video, np.array(wanted))
        want = [bytes(video.packets[video.packet_index(number)]) for number in wanted]
        starts = {bytes(video.packets[start]) for start in video.starts}
        key_frames = {bytes(video.packets[key]) for key in video.keyframes}
    with av.open(io.BytesIO(part)) as container:
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    with open_packets(part, count) as short:
        assert [bytes(short.packets[short.packet_index(number)]) for number in numbers] == want
        first = [bytes(short.packets[key]) for key in short.keyframes]
    assert first[0] in starts
    if options and "open-gop" in str(options):
        assert len(starts) < len(key_frames), "an open group is no start"


@pytest.mark.slow
def test_parts_need_no_packet_in_common_and_are_of_about_equal_work():
    with open_packets(painted_video(480, gop=16), 480) as video:
        for count in (1, 2, 3, 7):
            for wanted in (np.arange(480), np.arange(3, 480, 5), np.arange(200, 330)):
                parts = split(video, wanted, count)
                assert np.concatenate(parts).tolist() == wanted.tolist() and len(parts) <= count
                needed = [packets_needed(video.starts, part) for part in parts]
                assert len(np.unique(np.concatenate(needed))) == sum(map(len, needed))
                assert max(map(len, needed)) <= sum(map(len, needed)) / len(parts) + 16
        assert len(split(video, np.arange(480), 3)) == 3
        assert len(split(video, np.array([1, 2]), 4)) == 1, "not worth another decoder"


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libx264", "h264"), ("libx265", "hevc")]
)
def test_idr_pictures_are_found_with_lengths_and_with_start_codes(codec, container):
    """avcC has lengths; a raw stream has start codes, no time stamps, and is not regular."""
    closed = {"x265-params": "open-gop=0:scenecut=0:log-level=none"} if codec == "libx265" else None
    data = painted_video(40, codec=codec, container=container, gop=10, options=closed)
    with av.open(io.BytesIO(data)) as opened:
        stream = opened.streams.video[0]
        packets = [packet for packet in opened.demux(stream) if packet.size]
        name, header = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
        found = [n for n, packet in enumerate(packets) if begins_anew(bytes(packet), name, header)]
    assert found == [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 10, 20, 30]
