"""Stochastic depth: in training, a residual branch is left out at random, per sample.

G. Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
"""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """The last step of a residual branch; a fresh mask per sample and call, none in evaluation mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path: got a rate of {rate}, want 0 <= rate < 1 (the share of samples)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, ...). Zero for the samples dropped, x / (1 - rate) for the others."""
        factors = self.draw(x)
        return x if factors is None else scaled(x, factors)

    def draw(self, x: Tensor) -> Tensor | None:
        """What each sample of x (n, ...) is multiplied by: (n,), in the dtype of x; None: by nothing."""
        if not self.training or self.rate == 0:
            return None
        return x.new_empty(len(x)).bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def scaled(x: Tensor, factors: Tensor) -> Tensor:
    """x (n, ...), each of the n times its factor (n,)."""
    return x * factors.view(-1, *[1] * (x.dim() - 1))


def rising_rates(last: float, depth: int) -> list[float]:
    """The rates of `depth` blocks: 0 for the first, `last` for the last, linear in between."""
    return [last * number / max(depth - 1, 1) for number in range(depth)]
