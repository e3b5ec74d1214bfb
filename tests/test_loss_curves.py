"""tests/loss_curves.py: the settings of its runs load; they differ from the first run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from loss_curves import GROUPS, TWO_THREADS, differences, row

from train.settings import load_settings


@pytest.mark.slow
@pytest.mark.parametrize("title", GROUPS)
def test_every_speed_up_makes_other_settings(title):
    group, shards = GROUPS[title], "data.shards=gone"
    first = load_settings(Path("demo"), [shards, *group.settings])
    for name, settings in group.speed_ups.items():
        other = load_settings(Path("demo"), [shards, *group.settings, *settings])
        assert (other == first) == (name == TWO_THREADS)


def test_a_row_names_the_differences_at_its_steps():
    off = differences([2.0] * 100, [2.0, *[3.0] * 99])
    assert row("x", off) == "| x | 0.0e+00 | 5.0e-01 | 5.0e-01 | 5.0e-01 | 5.0e-01 |"
    assert row("x", off[:20]) == "| x | 0.0e+00 | 5.0e-01 | - | - | 5.0e-01 |"
