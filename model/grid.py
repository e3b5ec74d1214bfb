"""A fixed-point grid for float states: sums of its points are exact, so a step can be undone bit by bit.

A float with d digits (24 in float32) adds two multiples of 2^k exactly while the sum stays within 2^(d + k).
The grid is chosen per sample from the stage input, so that a clip's features do not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Bits by which a state may outgrow the largest stage input before its sums are rounded again (by a grid step,
# as without a grid). The other digits are resolution: float32 states are rounded to 2^-20 of that input.
HEADROOM = 3

_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2 ** exponent, exactly (torch.exp2 may be off by one rounding); `dtype` is float32 or float64.

    exponent: any integer type, clamped to the normal numbers of `dtype`.
    """
    digits = _digits(dtype)
    bias = 127 if dtype == torch.float32 else 1023
    bits = (exponent.to(_INTEGER[dtype]) + bias).clamp(1, 2 * bias) << (digits - 1)
    return bits.view(dtype)


def _digits(dtype: torch.dtype) -> int:
    return 24 if dtype == torch.float32 else 53


@dataclass(frozen=True)
class Grid:
    """Multiples of `step`, a power of two per sample: (n, 1, ...)."""

    step: Tensor

    @staticmethod
    def of(x: Tensor) -> Grid:
        """The grid for a stage with this input; x: (n, D, ...), float32 or float64."""
        largest = x.detach().abs().flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))  # (n,)
        _, exponent = torch.frexp(largest)  # largest <= 2 ** exponent
        # One digit less than there are: the stage output is the sum of two states, halved.
        step = power_of_two(exponent + HEADROOM + 1 - _digits(x.dtype), x.dtype)
        return Grid(step.view(-1, *[1] * (x.dim() - 1)))

    def round(self, x: Tensor) -> Tensor:
        """The nearest points to x: (n, D, ...)."""
        return torch.round(x / self.step).mul_(self.step)
