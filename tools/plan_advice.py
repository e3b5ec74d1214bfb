"""Which piece size, batch and clip ratio fit into a GPU: a search over estimates of whole steps.

What trades what: piece_clips is time alone (the result stays the same), so it gives way first and is the
first to grow; batch_size changes the steps that are taken (accumulation_steps makes up for it, in time);
clip_ratio is how much of the gradient is seen: it costs time and hardly any memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from model.sampling import num_kept
from train.settings import Settings

MOST_VIDEOS = 64  # per batch; nobody is advised more
PIECE, BATCH, RATIO = "encoder.piece_clips", "optimizer.batch_size", "encoder.clip_ratio"
ACCUMULATION = "optimizer.accumulation_steps"
Change = dict[str, float]


@dataclass(frozen=True)
class Option:
    """Settings to change, the bytes that the run then needs, and what it is good for."""

    changes: Change
    total: int
    why: str

    def line(self) -> str:
        """Ready for the command line."""
        return " ".join(f"--set {name}={value:g}" for name, value in self.changes.items())


def largest(peak: Callable[[int], int], low: int, high: int, budget: int) -> int | None:
    """The largest whole number from low to high whose peak fits; None if not even `low` does.

    The peak grows with the number, nearly in a straight line: each try is where the line between the nearest
    that fits and the nearest that does not crosses the budget. What is returned was tried and fits.
    """
    below = peak(low)
    if below > budget:
        return None
    above = peak(high)
    if above <= budget:
        return high
    while high - low > 1:
        guess = low + math.floor((budget - below) * (high - low) / (above - below))
        if guess <= low:
            break
        value = peak(min(guess, high - 1))
        if value <= budget:
            low, below = min(guess, high - 1), value
        else:
            high, above = min(guess, high - 1), value
    return low


def changed(settings: Settings, changes: Change) -> Settings:
    """The settings with some numbers replaced."""
    values = settings.model_dump()
    for name, value in changes.items():
        group, field = name.split(".")
        values[group][field] = value
    return Settings.model_validate(values)


def ratio_of(kept: int, num_clips: int) -> float:
    """The shortest ratio that keeps so many clips (num_kept rounds up, so this one is rounded down)."""
    for digits in range(1, 7):
        ratio = math.floor(kept / num_clips * 10**digits) / 10**digits
        if ratio > 0 and num_kept(num_clips, ratio) == kept:
            return ratio
    return kept / num_clips


class Search:
    """Looks for settings that fit; each candidate is estimated once."""

    def __init__(self, settings: Settings, peak: Callable[[Settings], int], budget: int) -> None:
        self.settings, self.budget = settings, budget
        self.num_clips = settings.data.num_clips
        self.kept = num_kept(self.num_clips, settings.encoder.clip_ratio)
        self.batch = settings.optimizer.batch_size

        @cache
        def total(piece: int, batch: int, kept: int) -> int:
            return peak(changed(settings, self._changes(piece, batch, kept)))

        self.total = total

    def _changes(self, piece: int, batch: int, kept: int) -> Change:
        ratio = self.settings.encoder.clip_ratio if kept == self.kept else ratio_of(kept, self.num_clips)
        return {PIECE: piece, BATCH: batch, RATIO: ratio}

    def _option(self, piece: int, batch: int, kept: int, why: str) -> Option:
        wanted = {PIECE: piece}
        if batch != self.batch:
            wanted[BATCH] = batch
        if batch < self.batch:
            wanted[ACCUMULATION] = self.settings.optimizer.accumulation_steps * math.ceil(self.batch / batch)
        changes: Change = dict(wanted)
        if kept != self.kept:
            changes[RATIO] = ratio_of(kept, self.num_clips)
        return Option(changes, self.total(piece, batch, kept), why)

    def piece(self, batch: int, kept: int) -> int | None:
        """The largest useful piece: larger than what has a gradient it would save no time."""
        return largest(lambda n: self.total(n, batch, kept), 1, batch * kept, self.budget)

    def options(self) -> list[Option]:
        """What fits, the first is the one to take; empty if nothing does."""
        piece = self.piece(self.batch, self.kept)
        return [] if self._smallest_fails() else self._shrunk() if piece is None else self._grown(piece)

    def _smallest_fails(self) -> bool:
        return self.total(1, 1, 1) > self.budget

    def _grown(self, piece: int) -> list[Option]:
        """The batch and ratio of the recipe fit: the largest piece, or else more of something."""
        found = [self._option(piece, self.batch, self.kept, "the same result, fastest")]
        own = min(piece, self.settings.encoder.piece_clips)
        high = max(MOST_VIDEOS, self.batch)
        batch = largest(lambda n: self.total(own, n, self.kept), self.batch, high, self.budget)
        if batch is not None and batch > self.batch:
            found.append(self._option(own, batch, self.kept, "more videos a step"))
        kept = largest(lambda n: self.total(own, self.batch, n), self.kept, self.num_clips, self.budget)
        if kept is not None and kept > self.kept:
            found.append(self._option(own, self.batch, kept, "more of the gradient, slower"))
        return found

    def _shrunk(self) -> list[Option]:
        """Not even one clip at a time: fewer videos at once, then fewer clips with a gradient."""
        kept = self.kept
        batch = largest(lambda n: self.total(1, n, kept), 1, self.batch, self.budget)
        if batch is None:
            batch = 1
            kept = largest(lambda n: self.total(1, 1, n), 1, self.kept, self.budget) or 1
        piece = self.piece(batch, kept)
        assert piece is not None, "one clip at a time fits, that was tried"
        return [self._option(piece, batch, kept, "as many videos a step, in more micro steps")]

    def smallest(self) -> Settings:
        """One clip at a time of one video, one clip with a gradient: nothing needs less."""
        return changed(self.settings, self._changes(1, 1, 1))
