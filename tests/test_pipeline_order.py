"""Order: every sample once per epoch over the ranks, equal steps, the same everywhere and always."""

import numpy as np
import pytest

from pipeline.order import epoch_order, next_step, rank_indices, stable_seed, steps_per_epoch


def test_an_epoch_is_a_permutation_that_seed_and_epoch_change():
    orders = [epoch_order(50, seed=seed, epoch=epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_never_changes_between_machines_and_versions():
    assert epoch_order(8, seed=0, epoch=0).tolist() == [7, 5, 2, 4, 6, 3, 0, 1]
    assert stable_seed("view", 0, 1, "key", 0.5) == 1895016223428500871448947646747637884


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 5, 12, 13])
def test_every_sample_once_over_the_ranks_and_the_last_step_filled_up(world_size, batch_size, num_samples):
    steps = steps_per_epoch(num_samples, batch_size=batch_size, world_size=world_size)
    taken = [
        rank_indices(num_samples, step, batch_size=batch_size, rank=rank, world_size=world_size)
        for step in range(steps)
        for rank in range(world_size)
    ]
    assert all(len(indices) == batch_size for indices in taken)
    in_order = np.concatenate(taken).tolist()
    assert 0 <= len(in_order) - num_samples < batch_size * world_size
    assert in_order == [i % num_samples for i in range(len(in_order))]  # then the epoch's own first samples


def test_a_step_holds_the_same_samples_on_one_rank_or_four():
    one = rank_indices(100, 3, batch_size=4, rank=0, world_size=1)
    four = [rank_indices(100, 3, batch_size=1, rank=rank, world_size=4) for rank in range(4)]
    assert one.tolist() == np.concatenate(four).tolist()


def test_steps_go_on_through_the_epochs():
    assert next_step(0, 0, steps=2) == (0, 1)
    assert next_step(0, 1, steps=2) == (1, 0)
