"""The schedule of beta over a run: from the pretrained network to the reversible one.

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
    first_at_end = max(round(settings.fraction * total_steps) - 1, 0)
    if step >= first_at_end:
        return settings.end
    progress = step / first_at_end
    if settings.schedule == "cosine":
        progress = (1 - cos(pi * progress)) / 2
    return settings.start + (settings.end - settings.start) * progress
