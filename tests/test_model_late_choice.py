"""model/late_choice.py: clips chosen by features and by gradients: counts, probabilities, weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.late_choice import LateChoice, inclusion_probabilities, late_choice, systematic_draw

STRATEGIES = ("farthest", "dpp", "top_gradient", "importance")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values_of(num_videos: int, num_clips: int, kind: str, seed: int = 0) -> Tensor:
    """(B, N, F): random, mostly 0 (as gradients are where no proposal reaches), all 0, or very uneven."""
    values = torch.randn(num_videos, num_clips, 5, generator=seeded(seed))
    if kind == "sparse":
        values[torch.rand(num_videos, num_clips, generator=seeded(seed + 1)) < 0.7] = 0
    if kind == "uneven":
        values *= 10.0 ** torch.randint(-30, 10, (num_videos, num_clips, 1), generator=seeded(seed + 1))
    return values * (kind != "zero")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    num_videos=st.integers(1, 3),
    num_clips=st.integers(1, 40),
    data=st.data(),
    strategy=st.sampled_from(STRATEGIES),
    kind=st.sampled_from(["random", "sparse", "zero", "uneven"]),
    seed=st.integers(0, 2**31),
)
def test_every_video_keeps_the_same_number_of_clips_each_once(
    num_videos, num_clips, data, strategy, kind, seed
):
    count = data.draw(st.integers(1, num_clips))
    chosen = late_choice(strategy, count, generator=seeded(seed)).choose(
        values_of(num_videos, num_clips, kind, seed % 1000)
    )
    assert chosen.clips.shape == (num_videos, count) and chosen.clips.dtype == torch.int64
    assert chosen.clips.min() >= 0 and chosen.clips.max() < num_clips
    assert (chosen.clips.diff(dim=1) > 0).all()
    if strategy == "importance" and count < num_clips:
        assert chosen.weights.shape == (num_videos, count) and (chosen.weights >= 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_clips_are_kept_once_if_all_are_asked_for(strategy):
    for count in (7, 9):
        chosen = late_choice(strategy, count, generator=seeded()).choose(values_of(2, 7, "random"))
        assert chosen.clips.tolist() == [list(range(7))] * 2 and chosen.weights is None


@pytest.mark.parametrize("strategy", ["farthest", "dpp", "importance"])
def test_the_choice_follows_the_seed_and_leaves_the_callers_generator_alone(strategy):
    values, generator = values_of(30, 20, "random"), seeded(1)
    choice = late_choice(strategy, 5, generator=generator)
    state = generator.get_state()
    one = choice.choose(values).clips
    assert torch.equal(generator.get_state(), state)
    again, other = (late_choice(strategy, 5, generator=seeded(s)).choose(values).clips for s in (1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_largest_gradients_are_the_ones_kept():
    norms = torch.tensor([[1.0, 5.0, 2.0, 4.0], [0.0, 1e-30, 0.0, 3.0]])[..., None]
    chosen = LateChoice("top_gradient", 2, seeded()).choose(norms)
    assert chosen.clips.tolist() == [[1, 3], [1, 3]]


@pytest.mark.parametrize("strategy", ["top_gradient", "importance"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_always_kept(strategy, wrong):
    values = values_of(1, 9, "random")
    values[0, 4, 2] = wrong
    for seed in range(20):
        assert 4 in late_choice(strategy, 2, generator=seeded(seed)).choose(values).clips[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.floats(0, 1e200), min_size=1, max_size=20), data=st.data())
def test_probabilities_sum_to_the_count_and_follow_the_sizes(sizes, data):
    count = data.draw(st.integers(1, len(sizes)))
    sizes = torch.tensor(sizes, dtype=torch.float64)
    probabilities = inclusion_probabilities(sizes, count)
    # sums of up to 20 float64 in another order; a clip of 1 - 1e-9 counts as certain
    assert abs(probabilities.sum().item() - count) < 1e-8
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    assert (probabilities[sizes.argsort()].diff() >= -1e-12).all()
    between = (probabilities > 0) & (probabilities < 1) & ((sizes > 0).sum() > count)
    between &= sizes / sizes.max() > 1e-300  # less is a subnormal number, which has fewer digits
    share = probabilities[between] / (sizes[between] / sizes.max())
    assert not len(share) or share.max() <= share.min() * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_systematic_draw_keeps_each_item_as_often_as_it_should(count):
    sizes = torch.tensor([1.0, 7.0, 0.0, 2.0, 2.0, 40.0, 0.5, 3.0], dtype=torch.float64)
    probabilities, generator, draws = inclusion_probabilities(sizes, count), seeded(5), 4000
    counts = torch.zeros(8)
    for _ in range(draws):
        counts[systematic_draw(probabilities, generator=generator)] += 1
    # five standard deviations of a share
    allowed = 5 * (probabilities * (1 - probabilities) / draws).sqrt() + 1e-12
    assert ((counts / draws - probabilities).abs() <= allowed).all()


def test_equal_gradients_are_drawn_evenly_spaced():
    for seed in range(50):
        drawn = systematic_draw(torch.full((20,), 0.3, dtype=torch.float64), generator=seeded(seed))
        assert set(drawn.diff().tolist()) <= {3, 4}
