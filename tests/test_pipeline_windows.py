"""Windows, clips, steps: round trips, coverage, centring, and the ground truth of a window."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.windows import clip_frame_numbers, seconds_to_steps, segments_in, steps_to_seconds, windows_of

seconds = st.floats(0.04, 20_000)
windows = st.tuples(st.floats(0, 5_000), st.floats(0.04, 5_000)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


@given(window=windows, num_steps=st.integers(1, 2048), fraction=st.floats(-0.5, 1.5))
def test_steps_and_seconds_are_inverse(window, num_steps, fraction):
    x = fraction * num_steps
    back = seconds_to_steps(steps_to_seconds(x, window, num_steps), window, num_steps)
    # float64: subtracting the start loses digits in proportion to start / length
    assert np.isclose(back, x, rtol=0, atol=1e-10 * num_steps * (1 + window[1] / (window[1] - window[0])))


def test_a_window_starts_at_step_0_and_ends_at_the_last():
    assert seconds_to_steps([[10.0, 15.0], [12.5, 20.0]], (10.0, 20.0), 64).tolist() == [[0, 32], [16, 64]]


@given(
    fps=st.floats(1, 120),
    window=windows,
    num_frames=st.integers(1, 100_000),
    num_clips=st.integers(1, 64),
    length=st.integers(1, 32),
    stride=st.integers(1, 8),
)
def test_clips_are_in_range_and_rising(fps, window, num_frames, num_clips, length, stride):
    frames = clip_frame_numbers(
        window, fps=fps, num_frames=num_frames, num_clips=num_clips, clip_frames=length, stride_frames=stride
    )
    assert frames.shape == (num_clips, length) and frames.dtype == np.int64
    assert frames.min() >= 0 and frames.max() < num_frames
    assert (np.diff(frames, axis=0) >= 0).all() and (np.diff(frames, axis=1) >= 0).all()


@given(
    fps=st.floats(5, 60), num_clips=st.integers(1, 64), length=st.integers(1, 32), stride=st.integers(1, 4)
)
def test_a_clip_is_centred_within_half_a_frame(fps, num_clips, length, stride):
    window, num_frames = (100.0, 300.0), int(400 * fps)
    frames = clip_frame_numbers(
        window, fps=fps, num_frames=num_frames, num_clips=num_clips, clip_frames=length, stride_frames=stride
    )
    middle = (frames[:, 0] + frames[:, -1] + 1) / 2  # frame f covers [f, f + 1)
    centres = (100.0 + (np.arange(num_clips) + 0.5) / num_clips * 200.0) * fps
    assert (np.abs(middle - centres) <= 0.5 + 1e-6).all()
    assert (np.diff(frames, axis=1) == stride).all()


def test_clips_by_hand():
    # 10 frames, 2 clips: centres at frame positions 2.5 and 7.5, so frames 1-4 and 6-9 (half up)
    frames = clip_frame_numbers((0, 10), fps=1, num_frames=10, num_clips=2, clip_frames=4, stride_frames=1)
    assert frames.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]


def test_edge_frames_are_repeated_at_both_ends():
    frames = clip_frame_numbers((0, 1), fps=3, num_frames=3, num_clips=1, clip_frames=7, stride_frames=1)
    assert frames.tolist() == [[0, 0, 0, 1, 2, 2, 2]]


@given(num_frames=st.integers(1, 3000), num_clips=st.integers(1, 8), length=st.integers(1, 256))
def test_without_a_stride_frames_are_spread_over_the_window(num_frames, num_clips, length):
    window, count = (0.0, num_frames / 15), num_clips * length
    frames = clip_frame_numbers(
        window, fps=15, num_frames=num_frames, num_clips=num_clips, clip_frames=length, stride_frames=None
    )
    assert frames.shape == (num_clips, length)
    # The middles of equal parts of the window; a float may round one to either side of a frame's end.
    middles = [(2 * i + 1) * num_frames / (2 * count) for i in range(count)]
    assert np.abs(frames.ravel() + 0.5 - middles).max() <= 0.5 + 1e-6


def test_frames_spread_over_part_of_a_video_by_hand():
    frames = clip_frame_numbers((2, 6), fps=2, num_frames=20, num_clips=1, clip_frames=4, stride_frames=None)
    assert frames.tolist() == [[5, 7, 9, 11]]
    frames = clip_frame_numbers((0, 1), fps=2, num_frames=2, num_clips=2, clip_frames=2, stride_frames=None)
    assert frames.tolist() == [[0, 0], [1, 1]]


@given(duration=seconds, window_seconds=seconds, overlap=st.floats(0, 0.9))
@example(duration=0.04000000000000001, window_seconds=0.04, overlap=0.0)  # longer by one rounding
def test_windows_cover_the_video_and_stay_inside(duration, window_seconds, overlap):
    window_seconds = max(window_seconds, duration / 200)  # not more than a few thousand windows
    found = windows_of(duration, window_seconds=window_seconds, overlap=overlap)
    starts, ends = np.array(found).T
    assert starts[0] == 0 and ends[-1] == pytest.approx(duration, rel=1e-9) and ends[-1] <= duration
    assert (starts >= 0).all() and (ends <= duration).all() and (np.diff(starts) > 0).all()
    assert (starts[1:] <= ends[:-1] + 1e-9 * duration).all()  # 1e-9: rounding of the starts
    assert np.allclose(ends - starts, min(duration, window_seconds))
    assert (np.diff(starts) <= window_seconds * (1 - overlap) * (1 + 1e-6)).all()


def test_windows_by_hand():
    assert windows_of(100.0, window_seconds=None, overlap=0.5) == [(0.0, 100.0)]
    assert windows_of(20.0, window_seconds=30.0, overlap=0.5) == [(0.0, 20.0)]
    assert windows_of(30.0, window_seconds=10.0, overlap=0.0) == [(0, 10), (10, 20), (20, 30)]
    assert windows_of(22.0, window_seconds=10.0, overlap=0.5) == [(0, 10), (5, 15), (10, 20), (12, 22)]


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan"), float("inf")])
def test_a_video_without_length_is_refused(duration):
    with pytest.raises(ValueError, match="duration"):
        windows_of(duration, window_seconds=10.0, overlap=0.5)


def test_ground_truth_counts_by_the_part_inside_and_is_clipped():
    segments = [(0, 4), (8, 12), (9, 19), (10, 14), (14, 14), (19, 30)]
    clipped, kept = segments_in(segments, (10.0, 20.0), min_overlap=0.5)
    assert kept.tolist() == [1, 2, 3]
    assert clipped.tolist() == [[10, 12], [10, 19], [10, 14]]
    assert segments_in(segments, (10.0, 20.0), min_overlap=0.0)[1].tolist() == [1, 2, 3, 5]
    assert segments_in([], (0.0, 1.0), min_overlap=0.5)[0].shape == (0, 2)


def test_windows_and_order_do_without_torch():
    code = "import sys, pipeline.windows, pipeline.order; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
