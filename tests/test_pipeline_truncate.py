"""Random truncation of windows: bounds, the kept action, what is drawn, the ground truth that is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_cases import video
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotations import Action
from pipeline.collate import collate, ground_truth_of
from pipeline.samples import Sample
from pipeline.truncate import truncated
from pipeline.windows import segments_in


def sample_of(
    *actions: tuple[float, float], seconds: float = 100.0, window: tuple[float, float] = (10, 50)
) -> Sample:
    own = tuple(Action(start, end, "jump") for start, end in actions)
    return Sample(replace(video("a"), duration=seconds, actions=own), window)


def parts_of(sample: Sample, count: int = 300, **changes: object) -> list[Sample]:
    options = {"seed": 1, "least": 0.5, "min_overlap": 0.5, "pad": False, **changes}
    return [truncated(sample, epoch=epoch, **options) for epoch in range(count)]


def test_parts_lie_in_the_window_and_have_all_lengths_and_places_that_are_allowed():
    parts = np.array([part.window for part in parts_of(sample_of())])
    lengths = parts[:, 1] - parts[:, 0]
    assert parts.min() >= 10 and parts.max() <= 50 and lengths.min() >= 20
    assert lengths.min() < 21 and lengths.max() > 39
    assert lengths.mean() == pytest.approx(30, abs=1)  # uniform from 20 to 40: 5.8 / sqrt(300) is 0.3
    places = (parts[:, 0] - 10) / (40 - lengths)
    assert places.min() < 0.02 and places.max() > 0.98 and places.mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
@given(start=st.floats(10, 48), length=st.floats(0.1, 60), least=st.floats(0.05, 1), share=st.floats(0, 1))
def test_an_action_of_the_window_keeps_the_least_share_of_its_length(start, length, least, share):
    sample = sample_of((start, start + length))
    was_there = len(segments_in([(start, start + length)], (10, 50), min_overlap=share)[1])
    for part in parts_of(sample, 5, least=least, min_overlap=share):
        segments, _ = ground_truth_of(part, {"jump": 0}, min_overlap=share)
        assert len(segments) >= was_there


def test_actions_are_cut_at_the_parts_ends_and_those_that_lose_too_much_are_left_out():
    sample = sample_of((12, 16), (30, 40), (47, 49))
    for part in parts_of(sample, 100):
        segments, labels = ground_truth_of(part, {"jump": 0}, min_overlap=0.5)
        start, end = part.window
        assert len(segments) == len(labels) >= 1
        want = [
            (max(a.start, start), min(a.end, end))
            for a in sample.video.actions
            if min(a.end, end) - max(a.start, start) >= 0.5 * (a.end - a.start)
        ]
        np.testing.assert_allclose(segments.numpy(), want)


def test_it_follows_from_seed_epoch_video_and_window_alone():
    one = sample_of((30, 40))
    assert parts_of(one, 3) == parts_of(one, 3)
    others = (parts_of(one, 3, seed=2), parts_of(sample_of((30, 40), window=(11, 50)), 3))
    assert all(a.window != b.window for other in others for a, b in zip(parts_of(one, 3), other, strict=True))
    later = zip(parts_of(sample_of(), 3), parts_of(sample_of(window=(50, 90)), 3), strict=True)
    assert all(abs(a.window[0] + 40 - b.window[0]) > 0.01 for a, b in later), "each window by its own draws"
    assert len({part.window for part in parts_of(one, 20)}) == 20


def test_a_padded_part_keeps_the_windows_length_and_ends_where_it_is_cut():
    sample = sample_of((12, 16), (40, 60), seconds=55, window=(10, 50))
    for part in parts_of(sample, 50, pad=True):
        assert part.window[1] - part.window[0] == pytest.approx(40)
        assert 10 <= part.window[0] < part.shown_end <= 50 and part.shown_end - part.window[0] >= 20 - 1e-9
        segments, _ = ground_truth_of(part, {"jump": 0}, min_overlap=0.5)
        assert segments.max() <= part.shown_end


def test_a_short_video_in_a_padded_window_is_cut_within_itself():
    sample = sample_of((1, 3), seconds=8, window=(0, 40))
    assert sample.shown_end == 8
    parts = parts_of(sample, 50, pad=True)
    lengths = [part.shown_end - part.window[0] for part in parts]
    assert all(part.shown_end <= 8 for part in parts) and 4 - 1e-9 <= min(lengths) < 5
    assert all(part.window[1] - part.window[0] == pytest.approx(40) for part in parts)


def test_a_window_with_too_little_of_an_action_is_cut_anywhere():
    sample = sample_of((5, 11))  # a sixth of it lies in the window
    parts = parts_of(sample, 20)
    assert all(10 <= part.window[0] < part.window[1] <= 50 and part != sample for part in parts)
    assert max(part.window[0] for part in parts) > 15


def test_a_batch_states_the_share_of_each_window_that_shows_its_video():
    samples = [sample_of(seconds=8, window=(0, 40)), sample_of(), replace(sample_of(), end=20.0)]
    inputs = torch.zeros(3, 4, 2)
    batch = collate(samples, inputs, padding=[False] * 3, frames=None, labels={}, min_action_overlap=0.5)
    assert batch.ends.tolist() == [8, 50, 20] and batch.video_shares.tolist() == [0.2, 1, 0.25]


def test_a_window_of_which_no_part_keeps_an_action_stays_whole():
    sample = sample_of((10, 50))
    assert parts_of(sample, 3, least=0.2, min_overlap=1.0) == [sample] * 3
