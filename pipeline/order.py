"""Decides which samples a rank sees at which step: a pure function of (seed, epoch, rank, world size).

One epoch is one list of sample numbers. Each step takes the next `world_size * batch_size` of them and every
rank its own `batch_size` in a row: all ranks run the same number of steps, and what a step holds depends on
the global batch size alone. The last step is filled up with the epoch's own first samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stable_seed(*parts: object) -> int:
    """A 128-bit seed from the parts' text: the same in every process, on every machine and Python version."""
    text = "\x1f".join(part.hex() if isinstance(part, float) else str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def stable_uniforms(shape: int | tuple[int, ...], *parts: object) -> NDArray[np.float64]:
    """Numbers in [0, 1) that the parts alone decide, see `stable_seed`; 53 bits each."""
    # raw output, since NumPy promises never to change that stream
    raw = np.random.PCG64(stable_seed(*parts)).random_raw(shape)
    return np.asarray((raw >> np.uint64(11)) / 2.0**53)


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of the samples in epoch `epoch`. Returns (num_samples,).

    Sorts raw generator output: unlike `Generator.permutation`, NumPy promises never to change it.
    """
    raw = np.random.PCG64(stable_seed("order", seed, epoch)).random_raw(num_samples)
    return np.argsort(raw, kind="stable").astype(np.int64)


def steps_per_epoch(num_samples: int, *, batch_size: int, world_size: int) -> int:
    """Steps that every rank runs in one epoch: enough for each sample to be seen, the last one filled up."""
    return -(-num_samples // (batch_size * world_size))


def rank_indices(
    num_samples: int, step: int, *, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Indices (batch_size,) into the epoch's list of the samples that `rank` takes at `step`.

    Indices that wrap around only fill the last step; every other one comes exactly once over all ranks and
    steps.
    """
    first = (step * world_size + rank) * batch_size
    return (first + np.arange(batch_size, dtype=np.int64)) % num_samples


def indices_by_video(keys: Sequence[str], *, rank: int, world_size: int) -> NDArray[np.int64]:
    """Sample numbers of every `world_size`-th video, beginning with the `rank`-th: what a rank evaluates.

    keys: the video of each sample, the windows of a video in a row; they stay on one rank, which merges them.
    """
    starts = [number for number, key in enumerate(keys) if number == 0 or key != keys[number - 1]]
    video_of = np.searchsorted(starts, np.arange(len(keys)), side="right") - 1
    return np.flatnonzero(video_of % world_size == rank)


def next_step(epoch: int, step: int, *, steps: int) -> tuple[int, int]:
    """The (epoch, step) that follows, where an epoch has `steps` steps."""
    return (epoch, step + 1) if step + 1 < steps else (epoch + 1, 0)
