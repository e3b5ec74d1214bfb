"""Watch a network run once, to see which of its blocks are called one straight after the other.

For networks whose forward cannot be traced. It speaks for that run alone (blocks that are skipped at random,
say, may all have run), so that the caller decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..recompute import RngState, frozen_statistics
from .chain import SHAPES, Call, Chain, containers, extra_argument, link, unproven
from .traced_block import in_mode


class _Watch(TorchFunctionMode):
    """Notes the calls of blocks, and which block's output meets an operation outside the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.made: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that no id comes twice
        self.elsewhere: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name not in SHAPES:
            self.note([args, kwargs or {}])
        return func(*args, **(kwargs or {}))

    def note(self, values: Any) -> None:
        """Tensors in `values` are used where the code is now."""
        allowed = {call.source for call in self.running}
        for tensor in _tensors(values):
            name, _ = self.made.get(id(tensor), (None, None))
            if name is not None and name not in allowed:
                self.elsewhere.add(name)

    def before(self, name: str, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Hook: a block is called."""
        extra = extra_argument(block, args, kwargs)
        call = Call(name, fault=None if extra is None else f"it is called with its argument {extra} set")
        given = list(_tensors([args, kwargs]))
        if len(given) == 1 and id(given[0]) in self.made:
            call.source = self.made[id(given[0])][0]
        else:
            self.note([args, kwargs])
        self.calls.append(call)
        self.running.append(call)

    def after(self, name: str, block: nn.Module, args: Any, output: Any) -> None:
        """Hook: a block returns."""
        self.running.pop()
        if isinstance(output, Tensor):
            self.made[id(output)] = (name, output)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors(list(vars(value).values()))


def _watched_calls(network: nn.Module, blocks: Sequence[str], args: Any, kwargs: Any) -> list[Call]:
    watch = _Watch()
    with ExitStack() as stack:
        for name in blocks:
            block = network.get_submodule(name)
            handles = (
                block.register_forward_pre_hook(partial(watch.before, name), with_kwargs=True),
                block.register_forward_hook(partial(watch.after, name)),
            )
            for handle in handles:
                stack.callback(handle.remove)
        device = next((tensor.device for tensor in _tensors([args, kwargs])), torch.device("cpu"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(frozen_statistics(network))
        stack.enter_context(RngState.capture(device).replay())
        stack.enter_context(watch)
        output = network(*args, **kwargs)
    watch.note(output)
    sources = [call.source for call in watch.calls]
    for call in watch.calls:
        if call.source in watch.elsewhere or sources.count(call.source) > 1:
            call.source = None
    return watch.calls


def observe(network: nn.Module, blocks: Sequence[str], *args: Any, **kwargs: Any) -> list[Chain]:
    """The chains that `blocks`, dotted names, formed in network(*args, **kwargs), run once in either mode.

    Without a graph; random numbers, batch norm statistics and training flags are left as they were. Not
    seen: a tensor that the network keeps for a later call. Raises what the network raises.
    """
    found = []
    for training in (network.training, not network.training):
        with in_mode(network, training):
            found.append(link(blocks, _watched_calls(network, blocks, args, kwargs), "observed"))
    if found[0] == found[1]:
        return found[0]
    reason = "it was called otherwise in training than in evaluation"
    return [unproven(blocks, container, reason, "observed") for container in containers(blocks)]
