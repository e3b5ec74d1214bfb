"""Operations that only arrange the elements of a state anew, such as a reshape, and how to undo them.

An addition of arranged states is an arranged addition: P(x) + F(P(x)) = P(x + P^-1(F(P(x)))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .operations import Operation

_RESHAPES = frozenset(
    {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone"}
)
_PERMUTATIONS = frozenset({"permute", "transpose", "swapaxes", "swapdims"})
_RESHAPING_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten)

Layout = tuple[Operation, ...]  # from the arrangement of the block's input, one after the other


def arranges(operation: Operation, module: nn.Module | None) -> bool:
    """Whether the operation takes one value and returns its elements in another arrangement."""
    if len(operation.inputs) != 1:
        return False  # its sizes come from elsewhere
    if module is not None:
        return isinstance(module, _RESHAPING_LAYERS)
    return operation.name in _RESHAPES | _PERMUTATIONS


def _dimensions(operation: Operation, num_dimensions: int) -> list[int]:
    """For each dimension of the result the one that it was."""
    values = [*operation.args[1:], *operation.kwargs.values()]
    if len(values) == 1 and isinstance(values[0], tuple | list):
        values = list(values[0])
    given = [int(value) % num_dimensions for value in values]
    if operation.name == "permute":
        return given
    order = list(range(num_dimensions))
    first, second = given
    order[first], order[second] = second, first
    return order


def arrange(layout: Layout, owner: nn.Module, x: Tensor) -> list[Tensor]:
    """x, then the result of each operation; views where possible."""
    values = [x]
    for operation in layout:
        values.append(operation.run(owner, {operation.inputs[0]: values[-1]}))
    return values


def undo(layout: Layout, values: Sequence[Tensor], y: Tensor) -> Tensor:
    """The inverse of the layout, of y; values: what `arrange` returned for a tensor of its kind.

    Returns y as it is if its shape is not that of the last value: somebody else tells that it does not fit.
    """
    if not isinstance(y, Tensor) or y.shape != values[-1].shape:
        return y
    for operation, before in zip(reversed(layout), reversed(values[:-1]), strict=True):
        if operation.name in _PERMUTATIONS:
            order = _dimensions(operation, before.ndim)
            y = y.permute([order.index(d) for d in range(before.ndim)])
        elif math.prod(before.shape) == y.numel():
            y = y.reshape(before.shape)
    return y
