"""The learning rates over a run, as shares of the highest."""

from __future__ import annotations

import math
from collections.abc import Callable

from train.optimizer import OptimizerSettings


def lr_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Share of the highest learning rate at each optimizer step (the first is 0).

    The warmup's first step is 1 / warmup_steps, not 0: a step at rate 0 is a batch thrown away.
    """
    warmup = settings.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if settings.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if settings.schedule == "step":
            # At the nearest step: a share such as 5 of 6 epochs, written with five digits, is between two.
            falls = int((step - warmup + 0.5) / max(1, total_steps - warmup) / settings.step_share)
            return float(settings.step_factor**falls)
        return 1.0

    return factor
