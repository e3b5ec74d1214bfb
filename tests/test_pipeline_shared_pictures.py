"""Pictures that two windows show: decoded once, and the same as if each window were decoded alone."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.shared_pictures import PendingWindow


class Decoded:
    """A decoder whose pictures (1, 1, 1) are their frame's number; frame `bad` cannot be decoded."""

    def __init__(self, bad: int = -1):
        self.bad, self.asked = bad, list[int]()

    def begin(self, frames, before=None, key="v") -> PendingWindow:
        frames = np.asarray(frames)
        pictures = np.full((*frames.shape, 1, 1, 1), 255, dtype=np.uint8)

        def decode(slots):
            self.asked += frames[slots].tolist()
            return Pending(self.bad, frames[slots], pictures, slots)

        return PendingWindow(key, frames, pictures, decode, before)


class Pending:
    def __init__(self, bad, frames, pictures, slots):
        self.bad, self.frames, self.pictures, self.slots = bad, frames, pictures, slots

    def wait(self) -> None:
        if self.bad in self.frames:
            raise ValueError(f"frame {self.bad}")
        self.pictures[self.slots] = self.frames[:, None, None, None]


def shown(window: PendingWindow) -> NDArray[np.uint8]:
    return window.pictures[..., 0, 0, 0]


def test_what_the_window_before_shows_is_not_decoded_again():
    decoder = Decoded()
    first = decoder.begin([[0, 1], [2, 3]])
    second = decoder.begin([[2, 3], [4, 4]], first)  # begun before the first is there
    third = decoder.begin([[4, 3], [3, 2]], second)  # nothing is new
    for window in (first, second, third):
        window.wait()
        assert np.array_equal(shown(window), window.frames)
    assert decoder.asked == [0, 1, 2, 3, 4, 4]


def test_another_video_shares_nothing():
    decoder = Decoded()
    first = decoder.begin([[0, 1]])
    second = decoder.begin([[0, 1]], first, key="w")
    assert decoder.asked == [0, 1, 0, 1] and not np.array_equal(shown(second), second.frames)


@pytest.mark.parametrize("seed", range(5))
def test_any_windows_in_a_row_have_their_own_pictures(seed):
    rng, decoder = np.random.default_rng(seed), Decoded()
    before, waiting = None, []
    for _ in range(200):
        frames = rng.integers(0, 60) + rng.integers(0, 40, size=(3, 2))
        before = decoder.begin(frames, before, key=str(rng.integers(0, 2)))
        waiting.append(before)
        if len(waiting) > rng.integers(0, 4):
            window = waiting.pop(0)
            window.wait()
            assert np.array_equal(shown(window), window.frames)


def test_nothing_is_copied_from_a_window_that_could_not_be_read():
    decoder = Decoded(bad=1)
    first = decoder.begin([[1, 2, 3]])
    second = decoder.begin([[2, 3, 4]], first)
    with pytest.raises(ValueError, match="frame 1"):
        first.wait()
    shown(first)[:] = 0  # as the loader leaves it
    second.wait()
    assert shown(second).tolist() == [[2, 3, 4]]


def test_what_a_window_shares_with_one_that_could_not_be_read_fails_it_as_well():
    decoder = Decoded(bad=2)
    first = decoder.begin([[1, 2]])
    second = decoder.begin([[2, 3]], first)
    for window in (first, second):
        with pytest.raises(ValueError, match="frame 2"):
            window.wait()


def test_a_window_keeps_only_the_one_before_it_and_that_until_it_is_there():
    decoder = Decoded()
    before, kept = None, []
    for start in range(4):
        before = decoder.begin([[start, start + 1]], before)
        kept.append(weakref.ref(before))
        before.wait()
    gc.collect()
    assert [window() is None for window in kept] == [True, True, True, False]
