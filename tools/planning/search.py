"""Searches for clips per forward, batch size and clip ratio that fit into a GPU, by estimates of whole steps.

What trades what: clips_per_forward is time alone (the result stays the same), so it is lowered first and
raised first; batch_size changes the steps that are taken (accumulation_steps makes up for it, in time);
clip_ratio is how much of the gradient is seen: it costs time and hardly any memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from model.sampling import num_kept
from train.settings import Settings

MAX_VIDEOS = 16  # per batch and GPU; nobody is advised more
FORWARD, BATCH, RATIO = "encoder.clips_per_forward", "optimizer.batch_size", "encoder.clip_ratio"
ACCUMULATION = "optimizer.accumulation_steps"
Changes = dict[str, float]  # dotted name of a setting -> its new value


@dataclass(frozen=True)
class Suggestion:
    """Settings to change, the bytes that the run then needs, and what it is good for."""

    changes: Changes
    total: int
    why: str

    def options(self) -> str:
        """Ready for the command line."""
        return " ".join(f"--set {name}={value:g}" for name, value in self.changes.items())


def largest_that_fits(peak: Callable[[int], int], low: int, high: int, start: int, budget: int) -> int | None:
    """The largest whole number from low to high whose peak fits; None if not even `low` does.

    The peak grows with the number, nearly in a straight line. From `start` up or down to a pair of which one
    fits and the other does not; then each try is where the line between them crosses the budget. What is
    returned was tried and fits.
    """
    fits, fails = _bracket(peak, low, high, start, budget)
    if fits is None or fails is None:
        return fits
    while fails - fits > 1:
        guess = _crossing(fits, peak(fits), fails, peak(fails), budget)
        if guess <= fits:
            break
        guess = min(guess, fails - 1)
        fits, fails = (guess, fails) if peak(guess) <= budget else (fits, guess)
    return fits


def _crossing(first: int, below: int, second: int, above: int, budget: int) -> int:
    """Where the line through both points reaches the budget, rounded down; above > below."""
    return first + (budget - below) * (second - first) // (above - below)


def _bracket(
    peak: Callable[[int], int], low: int, high: int, start: int, budget: int
) -> tuple[int | None, int | None]:
    """Neighbouring tries of which the first fits and the second does not; None where there is none."""
    here = start
    if peak(here) > budget:
        while here > low:
            here, fails = max(low, here // 2), here
            if peak(here) <= budget:
                return here, fails
        return None, here
    step = here
    while here < high:
        there = min(high, here + max(1, step))
        if peak(there) > budget:
            return here, there
        growth = peak(there) - peak(here)
        # as far as the line goes, and one further, which should fail; a flat one leads to the end
        step = 1 + (budget - peak(there)) * (there - here) // growth if growth > 0 else high
        here = there
    return here, None


def with_changes(settings: Settings, changes: Changes) -> Settings:
    """The settings with some numbers replaced."""
    values = settings.model_dump()
    for name, value in changes.items():
        group, field = name.split(".")
        values[group][field] = value
    return Settings.model_validate(values)


def ratio_of(kept: int, num_clips: int) -> float:
    """The shortest ratio that keeps so many clips (num_kept rounds up, so this one is rounded down)."""
    for digits in range(1, 7):
        ratio: float = math.floor(kept / num_clips * 10**digits) / 10**digits
        if ratio > 0 and num_kept(num_clips, ratio) == kept:
            return ratio
    return kept / num_clips


class SettingsSearch:
    """Searches for settings whose peak is at most `budget` bytes; each candidate is estimated once.

    A candidate is three numbers: clips per forward, batch (videos), and kept (clips of a video with a
    gradient).
    """

    def __init__(self, settings: Settings, peak: Callable[[Settings], int], budget: int) -> None:
        self.settings, self.budget = settings, budget
        self.num_clips = settings.data.num_clips
        self.kept = num_kept(self.num_clips, settings.encoder.clip_ratio)
        self.batch = settings.optimizer.batch_size

        @cache
        def total(clips: int, batch: int, kept: int) -> int:
            return peak(with_changes(settings, self._changes(clips, batch, kept)))

        self.total = total

    def _changes(self, clips: int, batch: int, kept: int) -> Changes:
        ratio = self.settings.encoder.clip_ratio if kept == self.kept else ratio_of(kept, self.num_clips)
        accumulated = self.settings.optimizer.accumulation_steps * math.ceil(self.batch / batch)
        return {FORWARD: clips, BATCH: batch, ACCUMULATION: accumulated, RATIO: ratio}

    def _suggestion(self, clips: int, batch: int, kept: int, why: str) -> Suggestion:
        same = {BATCH: batch == self.batch, ACCUMULATION: batch >= self.batch, RATIO: kept == self.kept}
        changes = {name: n for name, n in self._changes(clips, batch, kept).items() if not same.get(name)}
        return Suggestion(changes, self.total(clips, batch, kept), why)

    def clips_per_forward(self, batch: int, kept: int) -> int | None:
        """The largest useful number that fits: more clips than have a gradient would save no time."""
        most = batch * kept
        own = min(self.settings.encoder.clips_per_forward, most)
        return largest_that_fits(lambda n: self.total(n, batch, kept), 1, most, own, self.budget)

    def suggestions(self) -> list[Suggestion]:
        """What fits, the first is the one to take; empty if nothing does."""
        own = min(self.settings.encoder.clips_per_forward, self.batch * self.kept)
        if self.total(own, self.batch, self.kept) > self.budget and self.total(1, 1, 1) > self.budget:
            return []
        clips = self.clips_per_forward(self.batch, self.kept)
        return self._smaller() if clips is None else self._larger(clips)

    def _larger(self, clips: int) -> list[Suggestion]:
        """The batch and ratio of the recipe fit: the most clips per forward, or else more of something."""
        suggestions = [self._suggestion(clips, self.batch, self.kept, "the same result, fastest")]
        own = min(clips, self.settings.encoder.clips_per_forward)
        batch = largest_that_fits(
            lambda n: self.total(own, n, self.kept),
            low=self.batch,
            high=max(MAX_VIDEOS, self.batch),
            start=self.batch,
            budget=self.budget,
        )
        if batch is not None and batch > self.batch:
            suggestions.append(self._suggestion(own, batch, self.kept, "more videos a step"))
        kept = largest_that_fits(
            lambda n: self.total(own, self.batch, n),
            low=self.kept,
            high=self.num_clips,
            start=self.num_clips,
            budget=self.budget,
        )
        if kept is not None and kept > self.kept:
            suggestions.append(self._suggestion(own, self.batch, kept, "more of the gradient, slower"))
        return suggestions

    def _smaller(self) -> list[Suggestion]:
        """Not even one clip at a time fits: fewer videos at once, then fewer clips with a gradient.

        So many videos at once that micro steps of them add up to the batch of the recipe.
        """
        kept = self.kept
        batch = largest_that_fits(lambda n: self.total(1, n, kept), 1, self.batch, self.batch, self.budget)
        if batch is not None:
            batch = max(n for n in range(1, batch + 1) if self.batch % n == 0)
        else:
            batch = 1
            kept = largest_that_fits(lambda n: self.total(1, 1, n), 1, self.kept, self.kept, self.budget) or 1
        clips = self.clips_per_forward(batch, kept)
        assert clips is not None, "one clip at a time fits, that was tried"
        return [self._suggestion(clips, batch, kept, "as many videos a step, in more micro steps")]

    def smallest(self) -> Settings:
        """One clip at a time of one video, one clip with a gradient: nothing needs less."""
        return with_changes(self.settings, self._changes(1, 1, 1))
