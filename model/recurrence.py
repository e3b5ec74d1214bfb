"""The arithmetic of the reversible recurrence, one step forward and back; formulas: model/reversible.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def _leaky(z: Tensor, slope: float) -> Tensor:
    """z where positive, slope * z elsewhere; exactly ReLU at 0 and the identity at 1."""
    if slope == 1:
        return z
    return F.relu(z) if slope == 0 else F.leaky_relu(z, slope)


@dataclass(frozen=True)
class Recurrence:
    """The arithmetic of one step, forward and inverse, on states: (n, D, ...), float32 or float64."""

    beta: float
    post_activation: bool = False
    leapfrog: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta: got {self.beta}, want 0 <= beta <= 1 (0: original network, 1: Re2TAL)")

    def branch_output(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """psi(F(x)), in the dtype of x."""
        y = function(x)
        return (_leaky(y, 1 - self.beta) if self.post_activation else y).to(x.dtype)

    def increment(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What a branch adds to the state: psi(F(x)), times 1 + beta if `leapfrog`."""
        y = self.branch_output(function, x)
        return y * (1 + self.beta) if self.leapfrog and self.beta > 0 else y

    def activate(self, z: Tensor) -> Tensor:
        """phi(z)."""
        return _leaky(z, self.beta) if self.post_activation else z

    def activate_backward(self, activated: Tensor, gradient: Tensor) -> Tensor:
        """The gradient for z from that for phi(z), here `activated`, which has the sign of z."""
        if not self.post_activation or self.beta == 1:
            return gradient
        return torch.where(activated > 0, gradient, self.beta * gradient)

    def forward_step(self, previous: Tensor, current: Tensor, increment: Tensor) -> Tensor:
        """x_{i+1} from x_{i-1}, x_i and the increment of branch i."""
        if self.beta == 0:
            mixed = current
        else:
            mixed = previous if self.beta == 1 else (1 - self.beta) * current + self.beta * previous
        return self.activate(mixed + increment)

    def inverse_step(self, current: Tensor, following: Tensor, increment: Tensor) -> Tensor:
        """x_{i-1} from x_i, x_{i+1} and the increment of branch i; beta > 0."""
        if self.beta == 1:
            return following - increment
        z = following
        if self.post_activation:
            z = torch.where(following > 0, following, following / self.beta)
        previous = (1 - self.beta) * current  # from here on in place: one tensor instead of three
        return torch.sub(z, previous, out=previous).sub_(increment).div_(self.beta)

    def output(self, previous: Tensor, last: Tensor) -> Tensor:
        """The stage output from x_{n-1} and x_n."""
        return last if self.beta == 0 else (last + self.beta * previous) / (1 + self.beta)

    def previous_state(self, output: Tensor, last: Tensor) -> Tensor:
        """x_{n-1} from the stage output and x_n; beta > 0."""
        return ((1 + self.beta) * output - last) / self.beta
