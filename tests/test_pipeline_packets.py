"""Packets: which ones a set of frames needs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_video import painted_video

from pipeline.packets import open_packets, packet_runs, packets_needed


def test_needed_packets_reach_from_the_key_frame_to_the_frame():
    assert packets_needed([0, 4, 8], np.array([5, 6, 9])).tolist() == [4, 5, 6, 8, 9]
    assert packets_needed([0], np.array([2])).tolist() == [0, 1, 2]
    assert packets_needed([3], np.array([1, 4])).tolist() == [0, 1, 3, 4]  # no key frame before 1


VIDEO = painted_video(48, gop=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 47), min_size=1))
def test_needed_packets_are_those_of_the_runs(wanted):
    frames = np.array(sorted(wanted))
    with open_packets(VIDEO, 48) as video:
        runs = [range(first, last + 1) for first, last in packet_runs(video, frames)]
        assert packets_needed(video.keyframes, frames).tolist() == [index for run in runs for index in run]
