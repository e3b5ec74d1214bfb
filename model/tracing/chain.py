"""Finds which blocks of a network are called one straight after the other: chains of blocks.

Three kinds of evidence. An nn.Sequential calls its children in order, by definition. Otherwise the forward
of the module that owns the blocks is traced: a proof, for the arguments' defaults. Where that fails,
`observe` (model/tracing/observe.py) can show in one run what cannot be proven.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .graph import Untraceable, trace
from .operations import METADATA, Operation, Program, ResultOf, result_indices
from .traced_block import in_mode


@dataclass(frozen=True)
class Chain:
    """Blocks of one container; the output of each is the input of the next and is used nowhere else."""

    container: str  # dotted name; "" is the network itself
    blocks: tuple[str, ...]  # dotted names, in calling order
    evidence: str  # "sequential", "traced" or "observed"
    reason: str | None  # why it is not proven, in one line; None if it is


@dataclass
class Call:
    """One call of a block, traced or observed."""

    name: str
    source: str | None = None  # the block whose output is its input
    problem: str | None = None  # why it cannot be part of a chain


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")


def _container(name: str) -> str:
    return name.rpartition(".")[0]


def _owner(network: nn.Module, container: str) -> str:
    """The innermost module around the container, or itself, that has a forward."""
    while isinstance(network.get_submodule(container), nn.ModuleList | nn.ModuleDict):
        container = _container(container)
    return container


def extra_argument(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The name of the first argument, besides the tensor, that is not at its default."""
    signature = inspect.signature(block.forward)
    bound = signature.bind(*args, **kwargs).arguments
    (first, value_of_first), *others = bound.items()
    if signature.parameters[first].kind == inspect.Parameter.VAR_POSITIONAL and len(value_of_first) > 1:
        return first
    for name, value in others:
        parameter = signature.parameters[name]
        default: Any = parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            default = () if parameter.kind == parameter.VAR_POSITIONAL else {}
        comparable = not isinstance(value, ResultOf | Tensor)
        if value is not default and not (comparable and type(value) is type(default) and value == default):
            return name
    return None


def _follows(call: Call, last: Call) -> bool:
    """Whether the call continues a chain that ends with the call `last`."""
    if call.problem or last.problem:
        return False
    return call.source == last.name and _container(call.name) == _container(last.name)


def link(blocks: Collection[str], calls: list[Call], evidence: str) -> list[Chain]:
    """The longest runs of linked calls within one container; blocks that link to none, with the reason."""
    names = [call.name for call in calls]
    for call in calls:
        if names.count(call.name) > 1:
            call.problem = call.problem or f"it is called {names.count(call.name)} times"
    runs: list[list[Call]] = []
    in_runs: set[str] = set()
    for call in calls:
        if runs and _follows(call, runs[-1][-1]):
            runs[-1].append(call)
        elif call.name not in in_runs:
            runs.append([call])
        in_runs.add(call.name)
    found = [
        Chain(_container(run[0].name), tuple(c.name for c in run), evidence, run[0].problem) for run in runs
    ]
    missing = [name for name in blocks if name not in names]
    return found + [Chain(_container(name), (name,), evidence, "it is never called") for name in missing]


def _sequential(network: nn.Module, container: str, blocks: Collection[str]) -> list[Chain]:
    sequence = network.get_submodule(container)
    children = [_dotted(container, name) for name in sequence._modules]
    members = list(sequence._modules.values())
    calls = []
    for i, name in enumerate(children):
        if name in blocks:
            twice = sum(member is members[i] for member in members) > 1
            problem = "the sequence holds it twice" if twice else None
            calls.append(Call(name, children[i - 1] if i else None, problem))
    return link(blocks, calls, "sequential")


def _traced_calls(program: Program, owner: nn.Module, prefix: str, blocks: Collection[str]) -> list[Call]:
    users = _users(program)
    calls = []
    for operation in program.operations:
        name = _dotted(prefix, operation.target) if operation.kind == "module" else ""
        if name not in blocks:
            continue
        call = call_of(name, owner.get_submodule(operation.target), operation.args, operation.kwargs)
        producer = _fed_by(operation, program, users)
        if producer is not None and _takes_first(producer):  # of a tuple: the state
            producer = _fed_by(producer, program, users)
        if producer is not None and producer.kind == "module":
            call.source = _dotted(prefix, producer.target)
        calls.append(call)
    return calls


def _fed_by(operation: Operation, program: Program, users: Sequence[set[int]]) -> Operation | None:
    """The operation whose result this one takes, where it takes no other and nobody else takes that."""
    if len(operation.inputs) != 1 or len(users[operation.inputs[0]]) != 1:
        return None
    return program.operations[operation.inputs[0]]


def _takes_first(operation: Operation) -> bool:
    return operation.target is operator.getitem and type(operation.args[1]) is int and not operation.args[1]


def call_of(name: str, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """The call of the block with these arguments, its source still open."""
    extra = extra_argument(block, args, kwargs)
    return Call(name, problem=None if extra is None else f"it is called with its argument {extra} set")


def _users(program: Program) -> list[set[int]]:
    """For each operation those that use the values of its result; -1: the output."""
    users: list[set[int]] = [set() for _ in program.operations]
    for i, operation in enumerate(program.operations):
        for j in () if _reads_metadata(operation) else operation.inputs:
            users[j].add(i)
    for j in result_indices(program.output):
        users[j].add(-1)
    return users


def _reads_metadata(operation: Operation) -> bool:
    if operation.kind == "method":
        return operation.target in METADATA
    return operation.target is getattr and operation.args[1] in METADATA


def _traced(network: nn.Module, prefix: str, blocks: Sequence[str]) -> list[Chain]:
    owner = network.get_submodule(prefix)
    where = f"{prefix or 'the network'} ({type(owner).__name__})"
    leaf_names = [name.removeprefix(f"{prefix}.") for name in blocks]
    found = []
    for training in (owner.training, not owner.training):
        try:
            with in_mode(owner, training):
                program = trace(owner, leaf_names)
        except Untraceable as error:
            reason = f"{where}: {error}; give example=, for one run to show the order"
            return [unproven(blocks, container, reason) for container in containers(blocks)]
        found.append(link(blocks, _traced_calls(program, owner, prefix, blocks), "traced"))
    if found[0] != found[1]:
        reason = f"{where} calls its blocks otherwise in training than in evaluation"
        return [unproven(blocks, container, reason) for container in containers(blocks)]
    return found[0]


def containers(blocks: Sequence[str]) -> list[str]:
    """The names of the modules that hold the blocks, each once."""
    return list(dict.fromkeys(map(_container, blocks)))


def unproven(blocks: Sequence[str], container: str, reason: str, evidence: str = "traced") -> Chain:
    """The blocks of one container, with the reason why their order is unknown."""
    inside = tuple(name for name in blocks if _container(name) == container)
    return Chain(container, inside, evidence, reason)


def chains(network: nn.Module, blocks: Sequence[str]) -> list[Chain]:
    """The chains that `blocks`, dotted names, form, by definition of nn.Sequential or by tracing.

    A block alone is a chain of one. Those of which nothing can be proven come with the reason. The network
    is left as it is; it does not run. (That an nn.Sequential is called itself, and not its children by
    somebody's forward, is assumed.)
    """
    found: list[Chain] = []
    owners: dict[str, list[str]] = {}
    for container in containers(blocks):
        inside = [name for name in blocks if _container(name) == container]
        forward = network.get_submodule(container).forward
        if getattr(forward, "__func__", None) is nn.Sequential.forward:
            found += _sequential(network, container, inside)
        else:
            owners.setdefault(_owner(network, container), []).extend(inside)
    for prefix, owned in owners.items():
        found += _traced(network, prefix, owned)
    return found
