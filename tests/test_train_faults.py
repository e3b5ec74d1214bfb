"""Training when the disk is full, when Ctrl-C is pressed twice, when another process of the run dies."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tiny_run import make_shards_of, run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards_of(tmp_path_factory.mktemp("faults"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1_000_000, "checkpoints: the next checkpoint could not be written (torch: a file is cut; "),
        (500_000, "checkpoints: the next checkpoint could not be written (Error while serializing: "),
        (2_500, ": File too large; "),  # detections.json
    ],
)
def test_a_full_disk_is_one_line_and_exit_code_2(shards, tmp_path, size, message):
    with files_of_at_most(size):
        stopped = run(shards, tmp_path / "run", run__checkpoint_every=int(size > 10_000), run__eval_every=1)
    assert stopped.exit_code == 2, stopped.output
    assert message in stopped.stderr and stopped.stderr.count("\n") == 1, stopped.stderr
    assert stopped.stderr.endswith("there is no checkpoint to go on from yet\n")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
