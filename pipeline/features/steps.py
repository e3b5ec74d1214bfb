"""Pure arithmetic: where the steps of a window lie among the features of a video; their values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..windows import Window

ROUNDING = 1e-6  # of a step: nearer to a feature than that is the feature itself, in full precision


def step_positions(
    window: Window, num_steps: int, *, first: float, step: float, count: int
) -> NDArray[np.float64]:
    """Where the middles of `num_steps` equal parts of `window` lie on the axis of a video's features. (T,)

    Feature i, of `count`, has its middle at `first + i * step` seconds. Beyond the first and last feature the
    position is theirs: the nearest one is all that is known there.
    """
    start, end = window
    middles = start + (np.arange(num_steps) + 0.5) / num_steps * (end - start)
    positions = np.clip((middles - first) / step, 0, count - 1)
    whole = np.round(positions)
    return np.asarray(np.where(np.abs(positions - whole) < ROUNDING, whole, positions), dtype=np.float64)


def interpolated(features: NDArray[np.float32], positions: NDArray[np.float64]) -> NDArray[np.float32]:
    """Features (n, D) at positions (T,) in [0, n - 1], linear between neighbours. Returns (T, D)."""
    before = np.floor(positions).astype(np.int64)
    after = np.minimum(before + 1, len(features) - 1)
    weight = (positions - before).astype(np.float32)[:, None]
    return np.asarray(
        np.where(weight, features[before] * (1 - weight) + features[after] * weight, features[before])
    )
