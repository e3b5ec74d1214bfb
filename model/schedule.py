"""Schedules over a run: of beta, from the pretrained network to the reversible one, and of sampling ratios.

Dr2Net (C. Zhao et al., CVPR 2024) moves its two coefficients during fine-tuning, so that a rewired network
need not be pretrained anew; its schedule is not published in numbers. Ours are the usual two, and none.
"""

from __future__ import annotations

from math import cos, pi
from typing import Literal

from pydantic import Field

from settings_group import SettingsGroup

Shape = Literal["constant", "linear", "cosine"]


class BetaSettings(SettingsGroup):
    """beta, the coefficient of the reversible recurrence, from the first step of a run to the last."""

    schedule: Shape = "constant"
    """How beta goes from encoder.beta.start to encoder.beta.end: constant is at the end from the first step
    on, linear moves evenly, cosine slowly at first and at last. With encoder.frozen beta stays at
    encoder.beta.start, unless the schedule is constant."""

    start: float = Field(0.0, ge=0.0, le=1.0)
    """beta at the first step, without unit; unused if the schedule is constant. 0 is the pretrained network
    itself. While beta is too small for a stage to be inverted, the stage stores more and needs more
    memory."""

    end: float = Field(1.0, ge=0.0, le=1.0)
    """beta after encoder.beta.fraction of the run, without unit. 1 is Re2TAL's network, inverted without
    error; less stays nearer to the pretrained one, but below about 0.9 deep stages need more memory, see
    docs/memory.md."""

    fraction: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the run's optimizer steps until encoder.beta.end is reached. Larger changes the network more
    slowly and trains the final one for fewer steps."""


class RatioSchedule(SettingsGroup):
    """How a ratio changes over a run until it has its own value; constant: it has it from the first step."""

    schedule: Shape = "constant"
    """How the ratio goes from start to its own value: constant has that from the first step on, linear moves
    evenly, cosine slowly at first and at last."""

    start: float = Field(1.0, gt=0.0, le=1.0)
    """The ratio at the first step; unused if the schedule is constant. Larger than the ratio itself spends
    time and memory on the first steps, smaller on the last."""

    fraction: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the run's optimizer steps until the ratio itself is reached. Larger changes it more slowly."""


def _value_at(settings: BetaSettings | RatioSchedule, end: float, step: int, total_steps: int) -> float:
    """The value at optimizer step `step`, counted from 0 to total_steps - 1; `end`: the last one."""
    if settings.schedule == "constant":
        return end
    first_at_end = max(round(settings.fraction * total_steps) - 1, 0)
    if step >= first_at_end:
        return end
    progress = step / first_at_end
    if settings.schedule == "cosine":
        progress = (1 - cos(pi * progress)) / 2
    return settings.start + (end - settings.start) * progress


def beta_at(settings: BetaSettings, step: int, total_steps: int) -> float:
    """beta for the forward of optimizer step `step`, counted from 0 to total_steps - 1."""
    return _value_at(settings, settings.end, step, total_steps)


def ratio_at(ratio: float, settings: RatioSchedule, step: int, total_steps: int) -> float:
    """The ratio that optimizer step `step` samples with; `ratio`: the one the schedule ends with."""
    return _value_at(settings, ratio, step, total_steps)


def largest_ratio(ratio: float, settings: RatioSchedule) -> float:
    """The largest ratio of a run, which decides its memory."""
    return ratio if settings.schedule == "constant" else max(ratio, settings.start)
