"""Runs a network on an example and notes, for every module, how it was called and how many bytes it keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from ..repeatable import python_random_state
from .arguments import Arguments, split_state, tensors_in
from .example import Example
from .observe import undisturbed
from .pending import Pending
from .traced_block import in_mode, tensor_versions


@dataclass
class ModuleCall:
    """One call of a module in the watched run."""

    state: Any
    arguments: Arguments
    carrying: list[str]  # the arguments that carry a gradient
    input_bytes: int  # of the tensors it was called with
    bytes: int = 0  # that autograd keeps of it
    problem: str | None = None  # why it must not run again
    output: Any = None


@dataclass
class Watched:
    """What one run showed: the calls of each module by name, and the bytes that autograd keeps in all."""

    calls: dict[str, list[ModuleCall]] = field(default_factory=lambda: defaultdict(list))
    bytes: int = 0


class _Counter(saved_tensors_hooks):
    """Counts the bytes of all storages that autograd keeps, each once."""

    def __init__(self, ignore: Collection[int]) -> None:
        self.seen, self.bytes = set(ignore), 0
        self.kept: list[Tensor] = []  # so that no address occurs twice
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.kept.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor


@dataclass
class _Running:
    call: ModuleCall
    bytes: int
    tensors: list[tuple[Tensor, int]]
    versions: dict[str, tuple[int, int]]
    random_state: Any


class _Watcher:
    """The hooks of a watched run."""

    def __init__(self, counter: _Counter) -> None:
        self.counter, self.watched, self.running = counter, Watched(), list[_Running]()

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        tensors = list(tensors_in([args, kwargs]))
        try:
            state, arguments = split_state(name, module, args, kwargs)
            carrying = [
                key
                for key, value in arguments.given(module).items()
                if any(tensor.requires_grad for tensor in tensors_in(value))
            ]
        except (ValueError, TypeError):
            state, arguments, carrying = None, Arguments(), []
        held = Arguments(*tree_map(_detached, (arguments.args, arguments.kwargs)))
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        call = ModuleCall(_detached(state), held, carrying, num_bytes)
        self.watched.calls[name].append(call)
        versions = [(tensor, tensor._version) for tensor in tensors]
        self.running.append(
            _Running(call, self.counter.bytes, versions, tensor_versions(module), python_random_state())
        )

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        running = self.running.pop()
        call = running.call
        call.bytes = self.counter.bytes - running.bytes
        call.output = tree_map(_detached, output)
        if any(tensor._version != version for tensor, version in running.tensors):
            call.problem = "it changes its input in place"
        elif tensor_versions(module) != running.versions:
            call.problem = "its forward writes to its buffers"
        elif python_random_state() != running.random_state:
            call.problem = "it draws from Python's or NumPy's random numbers"
        elif not all(_is_plain(leaf) for leaf in tree_leaves([args, kwargs, output])):
            call.problem = "it takes or returns more than tensors, numbers and texts"
        elif not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            call.problem = "it returns no tensor"


def _detached(value: Any) -> Any:
    if isinstance(value, Pending):
        return None  # within a chain that is rewired
    return value.detach() if isinstance(value, Tensor) else value


def _is_plain(value: Any) -> bool:
    kinds = Tensor | bool | int | float | str | torch.dtype | torch.device
    return value is None or isinstance(value, kinds)


def watch(network: nn.Module, names: Sequence[str], example: Example) -> Watched:
    """One run on the example, in the present modes and with a graph; the network is left as it is.

    names: of the modules whose calls are noted. Raises what the network raises.
    """
    tensors = list(tensors_in([example.args, example.kwargs]))
    device = tensors[0].device if tensors else torch.device("cpu")
    known = [*network.parameters(), *network.buffers(), *tensors]
    counter = _Counter({tensor.untyped_storage().data_ptr() for tensor in known})
    watcher = _Watcher(counter)
    with ExitStack() as stack:
        for name in names:
            module = network.get_submodule(name)
            pre_hook = partial(watcher.enter, name)
            stack.callback(module.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(watcher.leave, with_kwargs=True).remove)
        stack.enter_context(undisturbed(network, device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(counter)
        network(*example.args, **example.kwargs)
    watcher.watched.bytes = counter.bytes
    return watcher.watched


def watch_both_modes(network: nn.Module, names: Sequence[str], example: Example) -> dict[bool, Watched]:
    """What `watch` shows with all modules in training mode (True) and in evaluation (False)."""
    found = {}
    for training in (True, False):
        with in_mode(network, training):
            found[training] = watch(network, names, example)
    return found
