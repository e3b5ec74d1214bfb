"""Nothing grows while a run goes on: the short form of tests/soak.py."""

from __future__ import annotations

import os

import pytest
from soak import Growth, Sample, growth, look, soak_prediction, soak_training


def samples(*memory: float) -> list[Sample]:
    return [Sample(one, 10, 3) for one in memory]


def test_the_start_does_not_count_and_a_steady_leak_does():
    steady = growth("x", samples(*range(40), *[100] * 60))
    assert steady.share("memory") == 0 and steady.samples == 100
    leak = growth("x", samples(*range(1000, 1100)))
    assert leak.share("memory") == pytest.approx(40 / 1049.5)
    assert "memory +3.81%" in leak.text() and "threads 3 -> 3" in leak.text()


def test_what_a_process_holds_is_read_from_outside():
    before = look(os.getpid())
    assert before is not None and before.memory > 2**20
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    after = look(os.getpid())
    for file in files:
        os.close(file)
    assert after is not None and after.descriptors == before.descriptors + 5
    assert look(2**22 + 1) is None


def check(found: Growth) -> None:
    """Shorter, so that what a start allocates late weighs more: 5 % of memory, not 2."""
    assert found.share("memory") < 0.05, found.text()
    assert found.share("descriptors") <= 0.02 and found.share("threads") <= 0.02, found.text()


@pytest.mark.slow
@pytest.mark.ci
def test_nothing_grows_over_a_hundred_steps_and_eighty_videos(tmp_path):
    check(soak_training(tmp_path, 100))
    check(soak_prediction(tmp_path, 80))  # of fewer, the start and the end are a fifth of the time
