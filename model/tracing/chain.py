"""Which blocks of a network nobody prepared are called one straight after the other.

Three kinds of evidence. An nn.Sequential calls its children in order, by definition. Otherwise the forward
of the module that owns the blocks is traced: a proof, for the arguments' defaults. Where that fails,
`observe` (model/tracing/observe.py) may see in one run what cannot be proven.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .graph import Untraceable, trace
from .operations import Program, Ref, Step
from .traced_block import in_mode

# Reading these of a tensor is no use of its values.
SHAPES = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "grad_fn", "is_leaf"}
    | {"size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "__len__", "_version"}
)


@dataclass(frozen=True)
class Chain:
    """Blocks of one container, each fed by the one before alone."""

    container: str  # dotted name; "" is the network itself
    blocks: tuple[str, ...]  # dotted names, in calling order
    evidence: str  # "sequential", "traced" or "observed"
    reason: str | None  # why it is not proven, in one line; None if it is


@dataclass
class Call:
    """One call of a block, traced or seen."""

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


def extra_argument(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The name of the first argument, besides the tensor, that is not at its default."""
    signature = inspect.signature(block.forward)
    bound = signature.bind(*args, **kwargs).arguments
    first, *others = bound.items()
    if signature.parameters[first[0]].kind == inspect.Parameter.VAR_POSITIONAL and len(first[1]) > 1:
        return first[0]
    for name, value in others:
        parameter = signature.parameters[name]
        default: Any = parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            default = () if parameter.kind == parameter.VAR_POSITIONAL else {}
        plain = not isinstance(value, Ref | Tensor)
        if value is not default and not (plain and type(value) is type(default) and value == default):
            return name
    return None


def link(blocks: Collection[str], calls: list[Call], evidence: str) -> list[Chain]:
    """The longest runs of linked calls within one container; blocks that fit in none, with the reason."""
    names = [call.name for call in calls]
    for call in calls:
        if names.count(call.name) > 1:
            call.fault = call.fault or f"it is called {names.count(call.name)} times"
    runs: list[list[Call]] = []
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
            calls.append(Call(name, children[i - 1] if i else None, twice))
    return link(blocks, calls, "sequential")


def _traced_calls(program: Program, owner: nn.Module, prefix: str, blocks: Collection[str]) -> list[Call]:
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
        extra = extra_argument(owner.get_submodule(step.target), step.args, step.kwargs)
        call = Call(name, fault=None if extra is None else f"it is called with its argument {extra} set")
        if len(step.inputs) == 1 and len(users[step.inputs[0]]) == 1:
            before = program.steps[step.inputs[0]]
            call.source = _join(prefix, before.target) if before.kind == "module" else None
        calls.append(call)
    return calls


def _reads_shape(step: Step) -> bool:
    if step.kind == "method":
        return step.target in SHAPES
    return step.target is getattr and step.args[1] in SHAPES


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
            return [unproven(blocks, container, reason) for container in containers(blocks)]
        found.append(link(blocks, _traced_calls(program, owner, prefix, blocks), "traced"))
    if found[0] != found[1]:
        reason = f"{where} calls its blocks otherwise in training than in evaluation"
        return [unproven(blocks, container, reason) for container in containers(blocks)]
    return found[0]


def containers(blocks: Sequence[str]) -> list[str]:
    """The modules that hold the blocks, each once."""
    return list(dict.fromkeys(map(_container, blocks)))


def unproven(blocks: Sequence[str], container: str, reason: str, evidence: str = "traced") -> Chain:
    """The blocks of one container, with the reason why nothing is known of their order."""
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
    for container in containers(blocks):
        held = [name for name in blocks if _container(name) == container]
        forward = network.get_submodule(container).forward
        if getattr(forward, "__func__", None) is nn.Sequential.forward:
            found += _sequential(network, container, held)
        else:
            owners.setdefault(_owner(network, container), []).extend(held)
    for prefix, held in owners.items():
        found += _traced(network, prefix, held)
    return found
