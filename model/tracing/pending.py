"""The output of a block of a chain that has not been computed yet: the chain's last block computes it.

A chain is one recurrence, and each of its blocks may get arguments of its own. So all but the last remember
how they were called and hand on a Pending. It has the shape, dtype, device and graph of the chain's input;
whatever would read its values is an error: a hidden state that the caller collects is never silently wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import Arguments, tensors_in
from .operations import METADATA

_OF_ENGINES = frozenset({"detach", "view_as"})  # what ZeRO-3 does to the outputs of modules, without a graph


class Pending(Tensor):
    """Stands for the output of the first `len(calls)` blocks of a chain; its data are the chain's input."""

    chain: object
    calls: tuple[Arguments, ...]  # of the blocks so far
    block_name: str  # of the last of them

    @staticmethod
    def of(state: Tensor, chain: object, calls: tuple[Arguments, ...], name: str) -> Pending:
        """state: the chain's input, or the Pending of the block before."""
        pending = _plain(state).as_subclass(Pending)
        pending.chain, pending.calls, pending.block_name = chain, calls, name
        return pending

    def input(self) -> Tensor:
        """The chain's input."""
        return _plain(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        pending = args[0] if args and isinstance(args[0], Pending) else None
        by_engine = name in _OF_ENGINES and not torch.is_grad_enabled()
        if pending is None or not (name in METADATA or by_engine):
            found = next(
                (tensor for tensor in tensors_in([args, kwargs or {}]) if isinstance(tensor, Pending)), None
            )
            where = "a rewired block" if found is None else found.block_name
            raise ValueError(
                f"rewire: the output of {where} is used by {name}(), not by the block after it alone; it is "
                "not computed one by one any more: rewire again with example= as the network is called now"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if by_engine and isinstance(result, Tensor):
            return Pending.of(result, pending.chain, pending.calls, pending.block_name)
        return result


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)
