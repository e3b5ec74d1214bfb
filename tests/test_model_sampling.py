"""model/sampling.py: which clips and proposals are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import num_kept, sample_clips, sample_labelled_clips

STRATEGIES = ("random", "uniform", "block")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    num_videos=st.integers(1, 3),
    num_clips=st.integers(1, 40),
    ratio=st.floats(1e-6, 1.0),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 2**31),
)
def test_every_video_keeps_the_same_number_of_clips_each_once(num_videos, num_clips, ratio, strategy, seed):
    kept = sample_clips(num_videos, num_clips, ratio, strategy=strategy, generator=seeded(seed))
    assert kept.shape == (num_videos, num_kept(num_clips, ratio))
    assert kept.dtype == torch.int64
    assert kept.min() >= 0 and kept.max() < num_clips
    assert (kept.diff(dim=1) > 0).all()  # rising, so without repeats


@pytest.mark.parametrize(
    ("num_clips", "ratio", "count"), [(10, 0.3, 3), (10, 0.31, 4), (128, 0.3, 39), (5, 1e-9, 1), (1, 1.0, 1)]
)
def test_the_ratio_is_rounded_up_but_not_by_binary_noise(num_clips, ratio, count):
    assert num_kept(num_clips, ratio) == count


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ratio_one_keeps_every_clip(strategy):
    kept = sample_clips(2, 7, 1.0, strategy=strategy, generator=seeded())
    assert kept.tolist() == [list(range(7))] * 2


@pytest.mark.parametrize("strategy", ["random", "uniform"])
def test_each_clip_is_kept_equally_often(strategy):
    kept = sample_clips(20_000, 10, 0.4, strategy=strategy, generator=seeded())
    shares = torch.bincount(kept.flatten(), minlength=10) / 20_000
    # standard deviation of a share: sqrt(0.4 * 0.6 / 20000) = 0.0035; five of them
    assert (shares - 0.4).abs().max() < 0.0175


def test_a_block_is_one_run_and_starts_anywhere():
    kept = sample_clips(500, 10, 0.4, strategy="block", generator=seeded())
    assert (kept.diff(dim=1) == 1).all()
    assert set(kept[:, 0].tolist()) == set(range(7))


def test_uniform_clips_are_evenly_spaced():
    gaps = sample_clips(500, 20, 0.3, strategy="uniform", generator=seeded()).diff(dim=1)  # 6 of 20
    assert set(gaps.flatten().tolist()) == {3, 4}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_draw_follows_the_seed_and_differs_between_videos(strategy):
    one, again, other = (
        sample_clips(50, 30, 0.2, strategy=strategy, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) > 1


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="clip sampling ratio"):
        sample_clips(1, 4, ratio, strategy="random", generator=seeded())


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'random', 'uniform' or 'block'"):
        sample_clips(1, 4, 0.5, strategy="grid", generator=seeded())


def labelled(num_clips: int, ratio: float, *videos: list[list[float]], seed: int = 0) -> torch.Tensor:
    segments = [torch.tensor(video).reshape(-1, 2) for video in videos]
    return sample_labelled_clips(num_clips, ratio, segments, num_steps=100, generator=seeded(seed))


@settings(max_examples=100, deadline=None)
@given(
    num_clips=st.integers(1, 40),
    ratio=st.floats(1e-6, 1.0),
    actions=st.lists(st.tuples(st.floats(-5, 99), st.floats(0.01, 50)), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_labelled_draw_has_its_count_wherever_the_actions_are(num_clips, ratio, actions, seed):
    video = [[start, start + length] for start, length in actions]
    kept = labelled(num_clips, ratio, video, [], seed=seed)
    assert kept.shape == (2, num_kept(num_clips, ratio)) and kept.dtype == torch.int64
    assert kept.min() >= 0 and kept.max() < num_clips
    assert (kept.diff(dim=1) > 0).all()


def test_clips_in_and_around_actions_come_first_and_the_rest_is_drawn():
    # ten clips of ten steps: the action from 42 to 58 reaches from 34 to 66, into the clips 3 to 6
    assert labelled(10, 0.4, [[42.0, 58.0]]).tolist() == [[3, 4, 5, 6]]
    fewer = {tuple(labelled(10, 0.2, [[42.0, 58.0]], seed=seed)[0].tolist()) for seed in range(100)}
    assert len(fewer) == 6, "any two of the four"
    more = [labelled(10, 0.5, [[42.0, 58.0]], seed=seed)[0].tolist() for seed in range(100)]
    assert all({3, 4, 5, 6} < set(kept) for kept in more)
    assert {clip for kept in more for clip in kept} == set(range(10))
    assert more == [labelled(10, 0.5, [[42.0, 58.0]], seed=seed)[0].tolist() for seed in range(100)]


@pytest.mark.slow
def test_without_actions_a_labelled_draw_is_random():
    kept = torch.cat([labelled(10, 0.4, *[[]] * 1000, seed=seed) for seed in range(10)])
    # standard deviation of a share: sqrt(0.4 * 0.6 / 10000) = 0.0049; five of them
    assert (torch.bincount(kept.flatten(), minlength=10) / 10_000 - 0.4).abs().max() < 0.0245
