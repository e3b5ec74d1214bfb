"""A fixed-point grid for float states: sums of its points are exact, so a step can be undone exactly.

A float with d digits (24 in float32) adds two multiples of 2^k exactly while the sum stays within 2^(d + k).
The grid is chosen per sample from the stage input, so that a clip's features do not depend on its neighbours;
a sample whose states outgrow it can get a wider one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Bits by which a state may outgrow the largest stage input; beyond, its sums are rounded by a grid step, as
# without a grid. The other digits are resolution: float32 states are rounded to 2^-20 of that input.
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


def largest_of(x: Tensor) -> Tensor:
    """The largest absolute value of each sample: x (n, D, ...) -> (n, 1, ...)."""
    dims = tuple(range(1, x.dim()))
    if not x.numel():
        return x.new_zeros((len(x), *[1] * len(dims)))
    x = x.detach()  # two passes, which on a CPU take a tenth of vector_norm's one, and no copy as abs
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


@dataclass(frozen=True)
class Grid:
    """Multiples of a power of two per sample, `step`; `shift` is 1.5 * 2^(digits - 1) steps: (n, 1, ...)."""

    step: Tensor
    shift: Tensor

    @staticmethod
    def of(x: Tensor) -> Grid:
        """The grid for a stage with this input; x: (n, D, ...), float32 or float64."""
        return Grid._for(largest_of(x))

    @staticmethod
    def _for(largest: Tensor) -> Grid:
        """Sums are exact up to 2^HEADROOM times `largest`, (n, 1, ...)."""
        _, exponent = torch.frexp(largest)  # largest <= 2 ** exponent
        # One digit less than there are: the stage output is the sum of two states, halved.
        step = power_of_two(exponent + HEADROOM + 1 - _digits(largest.dtype), largest.dtype)
        return Grid(step, step * 1.5 * 2.0 ** (_digits(largest.dtype) - 1))

    def widened(self, largest: Tensor) -> Grid | None:
        """The grid on which states up to twice `largest`, (n, 1, ...), are exact, where they are not on this.

        None if no sample has outgrown this one. Waits for the device.
        """
        outgrown = (largest > self.shift / 1.5) & largest.isfinite()
        if not outgrown.any():
            return None
        wider = Grid._for(largest * 2.0 ** (1 - HEADROOM))
        step, shift = (
            torch.where(outgrown, wider.step, self.step),
            torch.where(outgrown, wider.shift, self.shift),
        )
        return Grid(step, shift)

    def round(self, x: Tensor) -> Tensor:
        """The nearest points to x: (n, D, ...)."""
        # A float of the size of `shift` has no digits below `step`: the sum is rounded to it, half to even.
        return (x + self.shift).sub_(self.shift)
