"""beta of the reversible recurrence over a run: from the pretrained network to a reversible one.

Dr2Net (C. Zhao et al., CVPR 2024) moves its two coefficients during fine-tuning, so that a rewired network
need not be pretrained anew; its schedule is not published in numbers. Ours are the usual two, and none.
"""

from __future__ import annotations

from math import cos, pi

from model.settings import BetaSettings


def beta_at(settings: BetaSettings, step: int, total_steps: int) -> float:
    """beta for the forward of optimizer step `step`, counted from 0 to total_steps - 1."""
    if settings.schedule == "constant":
        return settings.end
    moving = max(round(settings.fraction * total_steps) - 1, 0)  # the first step at `end`
    if step >= moving:
        return settings.end
    part = step / moving
    if settings.schedule == "cosine":
        part = (1 - cos(pi * part)) / 2
    return settings.start + (settings.end - settings.start) * part
