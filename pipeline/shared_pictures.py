"""Copies the pictures that the window before shows as well: half of them, if windows overlap by half.

In evaluation alone: there a picture depends on nothing but its video and its frame.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .clip_decoder import PendingClips
from .pictures import Pictures, Slots, copy_pictures


class PendingWindow:
    """The pictures of a window that are on their way, and what those of the next may be copied from.

    key: of the video. frames: (N, L) of it. pictures: (N, L, C, H, W) uint8, to be filled. decode: begins to
    decode those of some slots. before: the window that was begun before, and is waited for before this one.
    """

    def __init__(
        self,
        key: str,
        frames: NDArray[np.int64],
        pictures: Pictures,
        decode: Callable[[Slots], PendingClips],
        before: PendingWindow | None,
    ):
        self.key, self.frames, self.pictures, self.is_there = key, frames, pictures, False
        self._before = before if before is not None and before.key == key else None
        is_shared = np.isin(frames, [] if self._before is None else self._before.frames)
        self._shared, self._new = np.nonzero(is_shared), np.nonzero(~is_shared)
        self._decode = decode
        self._decoded = decode(self._new) if len(self._new[0]) else None

    def wait(self) -> None:
        """Until all are there. Raises ValueError or OSError when they cannot be read."""
        before, self._before = self._before, None  # or each window would keep all before it
        if self._decoded is not None:
            self._decoded.wait()
        if before is not None:
            self._take_shared(before)
        self.is_there = True

    def _take_shared(self, before: PendingWindow) -> None:
        if not before.is_there:  # it could not be read
            self._decode(self._shared).wait()
            return
        numbers, first = np.unique(before.frames, return_index=True)
        of = first[np.searchsorted(numbers, self.frames[self._shared])]
        slots = np.unravel_index(of, before.frames.shape)
        copy_pictures(before.pictures, slots, self.pictures, self._shared)
