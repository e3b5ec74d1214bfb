"""Pictures of clips, and the copying of some of them: from decoded frames, or from another window."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

SLOTS_AT_ONCE = 16  # are copied: what lies in between stays in the cache

Pictures = NDArray[np.uint8]  # (..., C, H, W)
Slots = tuple[NDArray[np.int64], ...]  # their indices, an array for each of the dimensions in front


def pictures_of(clips: torch.Tensor) -> Pictures:
    """Clips (N, C, L, H, W) uint8 seen as (N, L, C, H, W)."""
    return clips.permute(0, 2, 1, 3, 4).numpy()


def copy_pictures(source: Pictures, of: Slots, into: Pictures, at: Slots) -> None:
    """Copy pictures (..., C, H, W) of these slots of `source` into those of `into`."""
    # by NumPy, which copies whole pictures: torch takes ten times as long for single bytes
    for start in range(0, len(at[0]), SLOTS_AT_ONCE):
        part = slice(start, start + SLOTS_AT_ONCE)
        into[tuple(numbers[part] for numbers in at)] = source[tuple(numbers[part] for numbers in of)]
