"""Segments that the edge of a window cuts off: those that another window shows clear of edges, no others."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.windows import windows_of
from train.postprocess import PostSettings, RawWindow, postprocess_video
from train.window_edges import cut_off


def slowly(segments, windows, duration, margin):
    """One segment after the other, by the definition."""

    def clear(segment, window):
        begins = segment[0] >= window[0] + margin or window[0] == 0
        return begins and (segment[1] <= window[1] - margin or window[1] == duration)

    def best(segment):
        return min(windows, key=lambda window: abs(sum(window) - sum(segment)))

    return [
        [not clear(segment, window) and clear(segment, best(segment)) for segment in inside]
        for inside, window in zip(segments, windows, strict=True)
    ]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("duration", [10.0, 13.7, 47.0])
def test_it_is_what_the_definition_says_in_any_order_of_windows(duration, overlap):
    rng = np.random.default_rng(7)
    windows = windows_of(duration, window_seconds=10.0, overlap=overlap)
    windows = [windows[i] for i in rng.permutation(len(windows))]
    segments = [np.sort(rng.uniform(*window, (300, 2)), axis=1) for window in windows]
    for inside, (start, end) in zip(segments, windows, strict=True):
        inside[:40, 1], inside[40:80, 0], inside[80:90] = end, start, [start, end]
    found = cut_off(segments, windows, duration=duration, margin=0.5)
    assert [list(rows) for rows in found] == slowly(segments, windows, duration, 0.5)
    if overlap == 0.5 or len(windows) == 1:
        assert any(rows.any() for rows in found) == (len(windows) > 1)


def test_nothing_is_cut_off_at_the_ends_of_the_video_or_where_no_window_shows_more():
    windows = [(0.0, 10.0), (5.0, 15.0), (10.0, 20.0)]
    of_first, of_second = (
        np.array([[0.0, 3.0], [8.0, 10.0], [2.0, 10.0]]),
        np.array([[6.0, 15.0], [5.0, 7.0]]),
    )
    of_last = np.array([[17.0, 20.0], [10.0, 20.0], [10.0, 12.0]])
    found = cut_off([of_first, of_second, of_last], windows, duration=20.0, margin=1.0)
    # 2 to 10 s may go on, but the second window, which could tell, begins too late to show it
    assert [list(rows) for rows in found] == [[False, True, False], [False, True], [False, False, True]]


def raw(window, segments, scores):
    return RawWindow(
        key="v",
        window=window,
        duration=15.0,
        num_steps=10,
        segments=np.array(segments, dtype=np.float32),
        quality=np.ones(len(segments), dtype=np.float32),
        class_scores=np.array(scores, dtype=np.float32)[:, None],
        boundary=np.ones((2, 10), dtype=np.float32),
    )


@pytest.mark.parametrize(("edge_steps", "first"), [(1.0, [8.0, 12.0]), (0.0, [8.0, 10.0])])
def test_an_action_behind_the_edge_of_a_window_is_reported_by_the_one_that_shows_it_whole(edge_steps, first):
    windows = [raw((0.0, 10.0), [[8.0, 9.9999]], [0.9]), raw((5.0, 15.0), [[3.0, 7.0]], [0.8])]
    detections = postprocess_video(windows, ["jump"], PostSettings(edge_steps=edge_steps, nms="gaussian"))
    assert detections[0]["segment"] == pytest.approx(first, abs=1e-3)
    assert len(detections) == (1 if edge_steps else 2)
