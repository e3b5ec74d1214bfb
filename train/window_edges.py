"""Which segments the edge of a window may have cut off, where another window shows more of the video.

The windows of a long video overlap, and training shows each the actions in it, cut to it. So an action that
goes on behind an edge is found twice: to its end by one window, and to the edge, just as surely, by another.
Suppression lowers the score of the worse of the two, whichever is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.windows import Window


def cut_off(
    segments: Sequence[NDArray[np.float64]], windows: Sequence[Window], *, duration: float, margin: float
) -> list[NDArray[np.bool_]]:
    """For each window whether its segments, (n, 2) in seconds, are within `margin` of an edge that cuts.

    windows: of one video of `duration` seconds, in any order; where the video begins or ends, nothing is cut.
    margin: seconds. A segment that no window shows better stays: it counts as cut off only where the window
    whose middle is nearest to its own holds it clear of edges.
    """
    starts, ends = np.array(windows, dtype=np.float64).T
    low = np.where(starts > 0, starts + margin, -np.inf)  # what begins before may have begun outside
    high = np.where(ends < duration, ends - margin, np.inf)
    order = np.argsort(starts + ends)
    middles = ((starts + ends) / 2)[order]
    borders = (middles[1:] + middles[:-1]) / 2
    found = []
    for number, inside in enumerate(segments):
        nearest = order[np.searchsorted(borders, inside.mean(axis=1))]
        touches = (inside[:, 0] < low[number]) | (inside[:, 1] > high[number])
        found.append(touches & (inside[:, 0] >= low[nearest]) & (inside[:, 1] <= high[nearest]))
    return found
