"""Which blocks of a network nobody prepared are called one straight after the other.

Three kinds of evidence. An nn.Sequential calls its children in order, by definition. Otherwise the forward
of the module that owns the blocks is traced: a proof, for the arguments' defaults. Where that fails,
`observe` runs the network once in each mode and watches the tensors: it speaks for that run alone (blocks
skipped at random, say, may all have run), so that the caller decides.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .recompute import RngState, frozen_statistics
from .trace_graph import Untraceable, trace
from .trace_run import in_mode
from .trace_steps import Program, Ref, Step

# Reading these of a tensor is no use of its values.
_SHAPES = frozenset(
    {
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_cuda",
        "requires_grad",
        "grad_fn",
        "is_leaf",
        "_version",
    }
    | {"size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "__len__", "element_size"}
)


@dataclass(frozen=True)
class Chain:
    """Blocks of one container, each fed by the one before alone."""

    container: str  # dotted name; "" is the network itself
    blocks: tuple[str, ...]  # dotted names, in calling order
    evidence: str  # "sequential", "traced" or "observed"
    reason: str | None  # why it is not proven, in one line; None if it is


@dataclass
class _Call:
    """One call of a block."""

    name: str
    source: str | None = None  # the block whose very output it takes
    fault: str | None = None  # why it cannot be part of a chain


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")


def _container(name: str) -> str:
    return name.rpartition(".")[0]


def _owner(network: nn.Module, container: str) -> str:
    """The nearest module around that has a forward of its own."""
    while isinstance(network.get_submodule(container), nn.ModuleList | nn.ModuleDict):
        container = _container(container)
    return container


def _extra_arguments(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The name of the first argument, besides the tensor, that is not at its default."""
    signature = inspect.signature(block.forward)
    bound = signature.bind(*args, **kwargs).arguments
    for name, value in list(bound.items())[1:]:
        parameter = signature.parameters[name]
        default: Any = parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            default = () if parameter.kind == parameter.VAR_POSITIONAL else {}
        plain = not isinstance(value, Ref | Tensor)
        if value is not default and not (plain and type(value) is type(default) and value == default):
            return name
    return None


def _chains(blocks: Collection[str], calls: list[_Call], evidence: str) -> list[Chain]:
    """The longest runs of linked calls within one container; blocks that fit in none, with the reason."""
    names = [call.name for call in calls]
    for call in calls:
        if names.count(call.name) > 1:
            call.fault = call.fault or f"it is called {names.count(call.name)} times"
    runs: list[list[_Call]] = []
    placed: set[str] = set()
    for call in calls:
        last = runs[-1][-1] if runs else None
        linked = last is not None and call.source == last.name and not (call.fault or last.fault)
        if last is not None and linked and _container(call.name) == _container(last.name):
            runs[-1].append(call)
        elif call.name not in placed:
            runs.append([call])
        placed.add(call.name)
    found = [
        Chain(_container(run[0].name), tuple(c.name for c in run), evidence, run[0].fault) for run in runs
    ]
    missing = [name for name in blocks if name not in names]
    return found + [Chain(_container(name), (name,), evidence, "it is never called") for name in missing]


def _sequential(network: nn.Module, container: str, blocks: Collection[str]) -> list[Chain]:
    sequence = network.get_submodule(container)
    children = [_join(container, name) for name in sequence._modules]
    members = list(sequence._modules.values())
    calls = []
    for i, name in enumerate(children):
        if name in blocks:
            twice = "the sequence holds it twice" if sum(m is members[i] for m in members) > 1 else None
            calls.append(_Call(name, children[i - 1] if i else None, twice))
    return _chains(blocks, calls, "sequential")


def _traced_calls(program: Program, owner: nn.Module, prefix: str, blocks: Collection[str]) -> list[_Call]:
    users: list[set[int]] = [set() for _ in program.steps]
    for i, step in enumerate(program.steps):
        for j in () if _reads_shape(step) else step.inputs:
            users[j].add(i)
    for j in _results(program.output):
        users[j].add(-1)
    calls = []
    for step in program.steps:
        name = _join(prefix, step.target) if step.kind == "module" else ""
        if name not in blocks:
            continue
        extra = _extra_arguments(owner.get_submodule(step.target), step.args, step.kwargs)
        call = _Call(name, fault=None if extra is None else f"it is called with its argument {extra} set")
        if len(step.inputs) == 1 and len(users[step.inputs[0]]) == 1:
            before = program.steps[step.inputs[0]]
            call.source = _join(prefix, before.target) if before.kind == "module" else None
        calls.append(call)
    return calls


def _reads_shape(step: Step) -> bool:
    if step.kind == "method":
        return step.target in _SHAPES
    return step.target is getattr and step.args[1] in _SHAPES


def _results(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.index
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _results(item)


def _traced(network: nn.Module, prefix: str, blocks: Sequence[str]) -> list[Chain]:
    owner = network.get_submodule(prefix)
    where = f"{prefix or 'the network'} ({type(owner).__name__})"
    closed = [name.removeprefix(f"{prefix}.") for name in blocks]
    found = []
    for training in (owner.training, not owner.training):
        try:
            with in_mode(owner, training):
                program = trace(owner, closed)
        except Untraceable as error:
            reason = f"{where}: {error}; observe() it, or vouch for the chain"
            return [_unproven(blocks, container, reason) for container in _containers(blocks)]
        found.append(_chains(blocks, _traced_calls(program, owner, prefix, blocks), "traced"))
    if found[0] != found[1]:
        reason = f"{where} calls its blocks otherwise in training than in evaluation"
        return [_unproven(blocks, container, reason) for container in _containers(blocks)]
    return found[0]


def _containers(blocks: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(_container, blocks)))


def _unproven(blocks: Sequence[str], container: str, reason: str, evidence: str = "traced") -> Chain:
    held = tuple(name for name in blocks if _container(name) == container)
    return Chain(container, held, evidence, reason)


def chains(network: nn.Module, blocks: Sequence[str]) -> list[Chain]:
    """The chains that `blocks`, dotted names, form, by definition of nn.Sequential or by tracing.

    A block alone is a chain of one. Those of which nothing can be proven come with the reason. The network
    is left as it is; it does not run. (That an nn.Sequential is called, and not walked over by somebody's
    forward, is taken for granted.)
    """
    found: list[Chain] = []
    owners: dict[str, list[str]] = {}
    for container in _containers(blocks):
        held = [name for name in blocks if _container(name) == container]
        forward = network.get_submodule(container).forward
        if getattr(forward, "__func__", None) is nn.Sequential.forward:
            found += _sequential(network, container, held)
        else:
            owners.setdefault(_owner(network, container), []).extend(held)
    for prefix, held in owners.items():
        found += _traced(network, prefix, held)
    return found


class _Watch(TorchFunctionMode):
    """Notes the calls of blocks, and which block's output meets an operation outside the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.running: list[_Call] = []
        self.made: dict[int, tuple[str, Tensor]] = {}  # by id; the tensor is held, so that no id comes twice
        self.elsewhere: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name not in _SHAPES:
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
        extra = _extra_arguments(block, args, kwargs)
        call = _Call(name, fault=None if extra is None else f"it is called with its argument {extra} set")
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


def _watched_calls(network: nn.Module, blocks: Sequence[str], args: Any, kwargs: Any) -> list[_Call]:
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
            found.append(_chains(blocks, _watched_calls(network, blocks, args, kwargs), "observed"))
    if found[0] == found[1]:
        return found[0]
    reason = "it was called otherwise in training than in evaluation"
    return [_unproven(blocks, container, reason, "observed") for container in _containers(blocks)]
