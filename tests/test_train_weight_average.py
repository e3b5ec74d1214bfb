"""The average of the weights alone, on tensors in place of an optimizer's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train import weight_average
from train.weight_average import WeightAverage


@pytest.fixture
def masters(monkeypatch) -> list[Tensor]:
    """The weights that an optimizer updates: twelve partitions of one shape, all of them 1."""
    weights = [torch.ones(2) for _ in range(12)]
    monkeypatch.setattr(weight_average, "master_weights", lambda engine: weights)
    return weights


def test_the_average_follows_by_what_the_decay_leaves(masters):
    average = WeightAverage(None, 0.75)
    masters[3].fill_(5.0)
    average.update()
    assert average.values[3].tolist() == [2.0, 2.0] and average.values[4].tolist() == [1.0, 1.0]
    average.update()
    assert average.values[3].tolist() == [2.75, 2.75] and masters[3].tolist() == [5.0, 5.0]


def test_the_network_has_the_average_within_the_block_alone(masters, monkeypatch):
    average, given = WeightAverage(None, 0.75), list[float]()
    monkeypatch.setattr(
        weight_average, "load_master_weights", lambda engine: given.append(float(masters[0][0]))
    )
    masters[0].fill_(5.0)
    with average.swapped_in():
        assert given == [1.0] and masters[0].tolist() == [1.0, 1.0]
    assert given == [1.0, 5.0] and masters[0].tolist() == [5.0, 5.0] and average.values[0].tolist() == [1, 1]


def test_each_partition_comes_back_as_itself(masters, tmp_path):
    average = WeightAverage(None, 0.75)
    for number, value in enumerate(average.values):
        value.fill_(number)
    average.save(tmp_path)
    other = WeightAverage(None, 0.75)
    other.load(tmp_path)
    assert [value[0].item() for value in other.values] == list(range(12))
