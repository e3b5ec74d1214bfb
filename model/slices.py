"""Runs a residual branch on slices of its rows, one after another: the same result, the memory of one slice.

Rows are what a branch acts on one by one: the tokens of an MLP, the windows of an attention within windows,
the samples of an attention over all tokens. In the backward pass each slice runs again with a graph of its
own, which is gone before the next one begins, so the activations within a branch do not grow with the clip.
Outputs and the gradients for the input are those of the whole branch; the gradients of its parameters are
summed over slices, in float32 at least, so they differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from .gradient_sums import GradientSums
from .partitioned import held_back
from .recompute import CallState

RowFunction = Callable[[Tensor, int], Tensor]  # some rows and the number of the first one -> as many rows
IncrementOf = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # a branch, its input -> what it adds


class Rows(Protocol):
    """How an input of one shape falls into rows, and back."""

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def elements(self) -> int:
        """Numbers that a row keeps alive at most, in the backward pass."""

    def take(self, x: Tensor, first: int, end: int) -> Tensor:
        """The rows from first to end, without it, of the contiguous x (n, ...)."""

    def put(self, x: Tensor, rows: Tensor, first: int, end: int) -> None:
        """The inverse: write them into the contiguous x."""


@dataclass(frozen=True)
class SliceableBranch:
    """A residual branch that also runs on some of its rows.

    start: called once a call, before the first slice, with a tensor of no element that has the number of
    samples and the dtype of the input; draws what the branch draws, and returns the function of rows.
    """

    whole: Callable[[Tensor], Tensor]
    rows: Callable[[Tensor], Rows]
    start: Callable[[Tensor, Rows], RowFunction]

    def __call__(self, x: Tensor) -> Tensor:
        """The branch at once: (n, ...) -> the same."""
        return self.whole(x)


@dataclass(frozen=True)
class Slices:
    """A branch on an input of one shape, cut so that no slice takes more than a number of bytes."""

    branch: SliceableBranch
    rows: Rows
    rows_per_slice: int
    dtype: torch.dtype  # that the branch computes in

    def start(self, x: Tensor) -> Callable[..., Tensor]:
        """What is drawn for a call on x is drawn; the function of rows, in any dtype, and `first`."""
        function = self.branch.start(x[:, :0].to(self.dtype), self.rows)
        return lambda rows, *, first: function(rows.to(self.dtype), first)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First row, and the one behind the last, of each slice."""
        for first in range(0, self.rows.count, self.rows_per_slice):
            yield first, min(first + self.rows_per_slice, self.rows.count)


def slices_of(
    function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, slice_bytes: int | None
) -> Slices | None:
    """How the branch is cut for x; None where it is not: it cannot be, or takes no more than the bytes."""
    if slice_bytes is None or not isinstance(function, SliceableBranch):
        return None
    rows = function.rows(x)
    row_bytes = rows.elements * dtype.itemsize
    if rows.count * row_bytes <= slice_bytes:
        return None
    return Slices(function, rows, max(1, slice_bytes // row_bytes), dtype)


def sliced_increment(slices: Slices, increment: IncrementOf, x: Tensor) -> Tensor:
    """increment(branch, x) without a graph, slice by slice."""
    function, rows, x = slices.start(x), slices.rows, x.contiguous()
    result = torch.empty_like(x)
    for first, end in slices.ranges():
        y = increment(partial(function, first=first), rows.take(x, first, end))
        rows.put(result, y, first, end)
    return result


def sliced_backward(
    slices: Slices, module: nn.Module, increment: IncrementOf, call: CallState, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the branch again at x, slice by slice, and back-propagate: its increment, the gradient for x.

    Parameter gradients accumulate in the parameters of `module`; ZeRO-3 reduces them with the last slice.
    """
    with call.replay(module):
        function = slices.start(x)
    rows, x, gradient = slices.rows, x.contiguous(), gradient.contiguous()
    result, input_gradient = torch.empty_like(x), torch.empty_like(x)
    sums = GradientSums([p for p in module.parameters() if p.requires_grad and not hasattr(p, "ds_id")])
    with held_back(module) as let_go:
        for first, end in slices.ranges():
            if end == rows.count:
                let_go()
            part = rows.take(x, first, end).detach().requires_grad_()
            with call.replay(module):
                y = increment(partial(function, first=first), part)
            torch.autograd.backward(y, rows.take(gradient, first, end))
            assert part.grad is not None, "its output does not depend on its input"
            rows.put(result, y.detach(), first, end)
            rows.put(input_gradient, part.grad, first, end)
            sums.add_low_precision()
    sums.put_back()
    return result, input_gradient
