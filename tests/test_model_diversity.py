"""model/diversity.py: farthest points and k-DPPs, against the obvious and slow."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.diversity import farthest_points, sample_kdpp, similarity_kernel


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points_of(kind: str, sets: int, count: int, seed: int) -> Tensor:
    """Random points, points of which many are equal, or all equal ones: (sets, count, 3) float64."""
    points = torch.randn(sets, count, 3, dtype=torch.float64, generator=seeded(seed))
    return {"random": points, "doubled": points[:, torch.arange(count) // 3], "equal": points * 0 + 1}[kind]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    sets=st.integers(1, 3),
    total=st.integers(1, 20),
    data=st.data(),
    kind=st.sampled_from(["random", "doubled", "equal"]),
    seed=st.integers(0, 2**31),
)
def test_every_set_gives_the_count_asked_for_each_once(sets, total, data, kind, seed):
    count, points = data.draw(st.integers(1, total)), points_of(kind, sets, total, seed)
    for chosen in (
        farthest_points(points, count, generator=seeded(seed)),
        sample_kdpp(similarity_kernel(points), count, generator=seeded(seed)),
    ):
        assert chosen.shape == (sets, count) and chosen.dtype == torch.int64
        assert chosen.min() >= 0 and chosen.max() < total
        assert (chosen.diff(dim=1) > 0).all()


def test_both_follow_the_seed():
    points = points_of("random", 40, 12, 0)
    for draw in (
        lambda seed: farthest_points(points, 4, generator=seeded(seed)),
        lambda seed: sample_kdpp(similarity_kernel(points), 4, generator=seeded(seed)),
    ):
        assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_each_next_point_is_the_farthest_of_all():
    """On a line of 0 .. 10: after the first, an end, then the other end or the middle, by hand."""
    line = torch.arange(11.0, dtype=torch.float64).reshape(1, 11, 1)
    found = {tuple(farthest_points(line, 3, generator=seeded(seed))[0].tolist()) for seed in range(200)}
    # first in 0 .. 5: then 10, and so on; a tie goes to the lower number
    want = set()
    for first in range(11):
        chosen = [first]
        while len(chosen) < 3:
            chosen.append(max(range(11), key=lambda i: (min(abs(i - c) for c in chosen), -i)))
        want.add(tuple(sorted(chosen)))
    assert found == want


def test_features_that_are_not_numbers_do_not_stop_the_choice():
    points = points_of("random", 1, 6, 0)
    points[0, 2] = torch.nan
    assert len(set(farthest_points(points, 6, generator=seeded())[0].tolist())) == 6
    assert len(set(sample_kdpp(similarity_kernel(points), 6, generator=seeded())[0].tolist())) == 6


def kdpp_by_determinants(kernel: Tensor, count: int) -> dict[tuple[int, ...], float]:
    sets = list(combinations(range(len(kernel)), count))
    minors = torch.stack([torch.det(kernel[list(items)][:, list(items)]) for items in sets])
    return dict(zip(sets, (minors / minors.sum()).tolist(), strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_kdpp_draws_each_set_as_often_as_its_determinant_says(count):
    factors = torch.randn(5, 5, dtype=torch.float64, generator=seeded(3))
    kernel, draws = factors @ factors.T, 20_000
    chosen = sample_kdpp(kernel.expand(draws, -1, -1), count, generator=seeded(4))
    for items, probability in kdpp_by_determinants(kernel, count).items():
        share = (chosen == torch.tensor(items)).all(1).double().mean().item()
        # five standard deviations of a share of 20,000 draws
        assert abs(share - probability) <= 5 * (probability * (1 - probability) / draws) ** 0.5 + 1e-12


def test_items_of_a_kernel_of_low_rank_are_drawn_beyond_its_rank():
    factors = torch.randn(6, 2, dtype=torch.float64, generator=seeded(3))
    chosen = sample_kdpp((factors @ factors.T)[None], 5, generator=seeded())
    assert len(set(chosen[0].tolist())) == 5


def test_similar_items_seldom_come_together():
    """Two clusters of four: a random pair falls into one of them in 12 of 28 draws."""
    points = torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3], dtype=torch.float64).reshape(1, 8, 1)
    kernel = similarity_kernel(points).expand(2000, -1, -1)
    chosen = sample_kdpp(kernel, 2, generator=seeded())
    together = ((chosen[:, 0] < 4) == (chosen[:, 1] < 4)).double().mean()
    assert together < 0.1
