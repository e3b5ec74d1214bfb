"""When two actions of a video are the same one, and whether one was there before."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annotations import Action

DUPLICATE_SECONDS = 1e-3  # actions of one label are the same when both ends agree to this
CELL_SECONDS = 2 * DUPLICATE_SECONDS  # wider than duplicates are apart, also where differences are rounded
AROUND = tuple(product((-1, 0, 1), repeat=2))  # a cell and those beside it


def is_duplicate(a: Action, b: Action) -> bool:
    """Whether two actions of a video are the same one: equal labels, starts and ends within 1 ms.

    This is the rule of OpenTAD and ActionFormer.
    """
    near = abs(a.start - b.start) <= DUPLICATE_SECONDS and abs(a.end - b.end) <= DUPLICATE_SECONDS
    return near and a.label == b.label


class SeenActions:
    """Actions of a video, in cells of (label, start, end): looking for a duplicate takes as long for many.

    It lies in the same cell as the action, or in one beside it.
    """

    def __init__(self) -> None:
        self._cells = defaultdict[tuple[str, float, float], list["Action"]](list)

    def has(self, action: Action) -> bool:
        """Whether one of them is the same action."""
        start, end = action.start // CELL_SECONDS, action.end // CELL_SECONDS
        near = (self._cells.get((action.label, start + i, end + j), ()) for i, j in AROUND)
        return any(is_duplicate(action, other) for cell in near for other in cell)

    def add(self, action: Action) -> None:
        """Put one to them."""
        self._cells[action.label, action.start // CELL_SECONDS, action.end // CELL_SECONDS].append(action)
