"""The times at which a video's frames are shown: their order, end, rate, and how evenly they come."""

from __future__ import annotations

from array import array
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

from .rates import closest_rate

# Decoders hand out frames in the order of display, but some AVI files swap the stamps of B-frames: the n-th
# frame shown takes the n-th smallest stamp. H.264 and HEVC reorder 16 frames at most.
REORDERED_FRAMES = 16


def in_order(frames: Iterator[tuple[Fraction, av.VideoFrame]]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The same frames and time stamps, stamps rising."""
    stamps: deque[Fraction] = deque()  # rising
    waiting: deque[av.VideoFrame] = deque()
    for stamp, frame in frames:
        if not stamps or stamp >= stamps[-1]:
            stamps.append(stamp)
        else:
            insort(stamps, stamp)
        waiting.append(frame)
        if len(waiting) > REORDERED_FRAMES:
            yield stamps.popleft(), waiting.popleft()
    while waiting:
        yield stamps.popleft(), waiting.popleft()


class Clock:
    """Collects the times of frames, in seconds from the first one.

    stated: frames per second as the header says, or None.
    """

    def __init__(self, stated: Fraction | None):
        self.stated, self.count = stated, 0
        self.last = self.step = Fraction(0)
        self.times = array("d")

    def add(self, time: Fraction, shown: Fraction) -> None:
        """Note the next frame; shown: for how long, 0 where the file does not say."""
        self.step = shown or (time - self.last) or (1 / self.stated if self.stated else Fraction(1, 25))
        self.last = time
        self.times.append(float(time))
        self.count += 1

    @property
    def end(self) -> Fraction:
        """When the last frame ends."""
        return self.last + self.step

    def rate(self) -> Fraction:
        """Frames per second; the stated rate where it is near and the frames are evenly spaced by it."""
        measured = (self.count - 1) / self.last if self.last else 1 / self.end
        stated = self.stated if self.stated and is_steady(self.times, self.stated) else None
        return closest_rate(measured, stated)

    def longest(self) -> tuple[float, float]:
        """When the frame begins that is followed the latest, and how long that takes, in seconds."""
        steps = np.diff(self.times) if self.count > 1 else np.zeros(1)
        return self.times[int(steps.argmax())], float(steps.max())


def is_steady(times: Sequence[float], fps: Fraction) -> bool:
    """Whether every frame k lies within half a frame, and half a second, of k / fps."""
    rate = float(fps)
    near = min(0.5, 0.5 * rate)  # in frames
    return all(abs(time * rate - number) <= near for number, time in enumerate(times))
