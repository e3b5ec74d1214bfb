"""A fixed-point grid for float states: sums of its points are exact, so a step can be undone exactly.

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
    """Multiples of a power of two per sample, `step`; `shift` is 1.5 * 2^(digits - 1) steps: (n, 1, ...)."""

    step: Tensor
    shift: Tensor

    @staticmethod
    def of(x: Tensor) -> Grid:
        """The grid for a stage with this input; x: (n, D, ...), float32 or float64."""
        dims = tuple(range(1, x.dim()))
        if x.numel():
            largest = torch.linalg.vector_norm(x.detach(), float("inf"), dim=dims, keepdim=True)
        else:
            largest = x.new_zeros((len(x), *[1] * len(dims)))  # (n, 1, ...)
        _, exponent = torch.frexp(largest)  # largest <= 2 ** exponent
        # One digit less than there are: the stage output is the sum of two states, halved.
        step = power_of_two(exponent + HEADROOM + 1 - _digits(x.dtype), x.dtype)
        return Grid(step, step * 1.5 * 2.0 ** (_digits(x.dtype) - 1))

    def round(self, x: Tensor) -> Tensor:
        """The nearest points to x: (n, D, ...)."""
        # A float of the size of `shift` has no digits below `step`: the sum is rounded to it, half to even.
        return (x + self.shift).sub_(self.shift)
