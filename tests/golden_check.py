"""One value of ours against one of a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT32 = 1e-5  # relative; the references' own distance from float64 is up to 5e-6 of the largest value
FLOAT64 = 1e-10


@dataclass(frozen=True)
class Check:
    """error: relative to the largest number of the reference's value; infinite if the shapes differ."""

    name: str
    error: float
    tolerance: float = FLOAT32

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        return f"{self.name} {self.error:.1e} (limit {self.tolerance:g})"


def compare(
    name: str, got: Tensor | float, want: Tensor | float, *, tolerance: float = FLOAT32, scale: float = 0.0
) -> Check:
    """scale: what the error is relative to, if the reference's largest number is smaller."""
    got, want = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, want))
    if got.shape != want.shape:
        return Check(f"{name} of shape {tuple(got.shape)}, want {tuple(want.shape)}", float("inf"), tolerance)
    if want.numel() == 0:
        return Check(name, 0.0, tolerance)
    size = max(float(want.abs().max()), scale)
    error = float((got - want).abs().max())
    return Check(name, error if size == 0 or error == 0 else error / size, tolerance)


def same_count(name: str, got: int, want: int) -> Check:
    """Whether two counts are equal."""
    return Check(f"{name}: {got} of {want}", 0.0 if got == want else float("inf"))


def same_rows(
    name: str,
    got: Tensor,
    want: Tensor,
    labels: tuple[Tensor, Tensor],
    *,
    rounded: tuple[float, ...] | None = None,
) -> Check:
    """Two sets of rows (n, c), in any order: the distance of each to the nearest of its label in the other.

    The order is left open because scores that are equal but for rounding change places. rounded: steps that
    the reference's columns were rounded to, half of which is no error.
    """
    got, want = got.double(), want.double()
    if len(got) != len(want):
        return same_count(f"rows of {name}", len(got), len(want))
    scale = want.abs().amax(0).clamp(min=1e-30)
    free = torch.tensor(rounded, dtype=torch.float64) / 2 if rounded else torch.zeros(got.shape[1])
    worst = 0.0
    for label in torch.unique(torch.cat(labels)):
        ours, theirs = got[labels[0] == label], want[labels[1] == label]
        if len(ours) != len(theirs):
            return same_count(f"rows of {name} with label {int(label)}", len(ours), len(theirs))
        off = ((ours[:, None] - theirs).abs() - free).clamp(min=0) / scale
        distance = off.amax(2)
        worst = max(worst, float(distance.amin(1).max()), float(distance.amin(0).max()))
    return Check(name, worst)
