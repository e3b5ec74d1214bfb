"""Runs the branches of a traced block with the block's own modules, and compares their sum with the block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..recompute import RngState, autocast_dtype, autocast_without_cache, frozen_statistics
from ..repeatable import python_random_state
from .arguments import NO_ARGUMENTS, Arguments, RefusedError, call_signature
from .block_program import BlockProgram, BranchProgram
from .graph import is_layer
from .memo import OF_MODULES

MAX_PROGRAMS = 256  # of a block: combinations of modes, sizes and arguments that are remembered
ADVICE = "if it is residual all the same, name its branches with branches="


def _is_constant(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _numbers_of(block: nn.Module) -> tuple[tuple[str, str], ...]:
    """Module and name of each attribute that a forward may compute with and that a trace takes for constant.

    Torch's layers are called whole, and read theirs themselves.
    """
    return tuple(
        (name, key)
        for name, module in block.named_modules()
        if not is_layer(module)
        for key, value in vars(module).items()
        if key not in OF_MODULES and _is_constant(value)
    )


def has_values(x: Tensor) -> bool:
    """Whether x has values to read: fake tensors (of a memory estimate) and those on meta have none."""
    return type(x) is Tensor and not x.is_meta


@contextmanager
def in_mode(block: nn.Module, training: bool) -> Iterator[None]:
    """Inside, all its modules are in one mode; afterwards each is as before."""
    flags = [(module, module.training) for module in block.modules()]
    for module, _ in flags:
        module.training = training
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@dataclass
class TracedBlock:
    """A block and its programs, one for each mode that occurred (see `mode`).

    A program that torch.fx traced holds for all sizes, with all other arguments at their defaults. Where
    there is none (`trace` is None), or arguments are given, there is one for each signature of the call that
    occurred. Programs hold names of modules, not modules: a deep copy runs the copied block.
    """

    block: nn.Module
    name: str
    trace: Callable[[nn.Module], BlockProgram] | None
    tape: Callable[[nn.Module, Tensor, Arguments], BlockProgram]
    programs: dict[Hashable, BlockProgram] = field(default_factory=dict)
    taped: dict[Hashable, BlockProgram] = field(default_factory=dict)
    checked: set[Hashable] = field(default_factory=set)
    inexact: bool = False  # the sum of its branches differs from its output by roundings: x + f + g, say
    # As they were at first: an engine counts in attributes of its own, which it adds later
    numbers: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = _numbers_of(self.block)

    def mode(self) -> Hashable:
        """Which of the block's modules are in training mode, and the numbers in their attributes."""
        modules = dict(self.block.named_modules())
        training = tuple(module.training for module in modules.values())
        values = (getattr(modules.get(name), key, None) for name, key in self.numbers)
        # What was None may be a table by now, which no key can hold
        return training, tuple(value if _is_constant(value) else type(value) for value in values)

    def _stored(
        self, programs: dict[Any, BlockProgram], key: Hashable, program: BlockProgram
    ) -> BlockProgram:
        known = next(iter([*self.programs.values(), *self.taped.values()]), program)
        if program.signature != known.signature:
            raise RefusedError(self.name, f"another number of branches in this mode; {ADVICE}")
        if len(programs) >= MAX_PROGRAMS:
            del programs[next(iter(programs))]  # the oldest; it is recorded anew if it is needed
        programs[key] = program
        return program

    def program(self, x: Tensor, arguments: Arguments) -> BlockProgram:
        """The program for the block's present mode and this call; recorded where these are new."""
        mode = self.mode()
        if self.trace is not None and not arguments.given(self.block):
            return self.programs.get(mode) or self._stored(self.programs, mode, self.trace(self.block))
        key = (mode, call_signature(self.name, x, arguments))
        return self.taped.get(key) or self._stored(self.taped, key, self.tape(self.block, x, arguments))

    def run(self, index: int, x: Tensor, arguments: Arguments = NO_ARGUMENTS) -> Tensor:
        """F_index(x), the same shape as x. Raises ValueError where the trace is wrong."""
        program = self.program(x, arguments)
        if index == 0:
            self.check(program, x, arguments)
        return self.run_branch(program.branches[index], index, x, arguments)

    def check(self, program: BlockProgram, x: Tensor, arguments: Arguments) -> None:
        """Compare the block's first call of a kind with its program. Raises ValueError where they differ."""
        if not has_values(x):
            return
        key = (self.mode(), call_signature(self.name, x, arguments))
        if key not in self.checked:
            equal = check(self.block, program, x, arguments, name=self.name)
            self.inexact = self.inexact or not equal
            if len(self.checked) >= MAX_PROGRAMS:
                self.checked.clear()
            self.checked.add(key)

    def run_branch(self, branch: BranchProgram, index: int, x: Tensor, arguments: Arguments) -> Tensor:
        """F(x), the same shape as x. Raises ValueError for another one."""
        version = None if x.is_inference() else x._version
        y = branch.run(self.block, x, arguments.tensors)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise RefusedError(
                self.name,
                f"branch {index} got {tuple(x.shape)} and returned {got}, want the same shape; "
                "leave this block out",
            )
        if version is not None and x._version != version:
            raise RefusedError(self.name, f"branch {index} changes its input in place, want it left alone")
        return y


@dataclass
class TracedBranch:
    """One branch of a traced block as a function."""

    traced: TracedBlock
    index: int
    arguments: Arguments = NO_ARGUMENTS

    def __call__(self, x: Tensor) -> Tensor:
        """F(x): the same shape."""
        return self.traced.run(self.index, x, self.arguments)


def tensor_versions(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of every buffer and every tensor that is a plain attribute."""
    tensors = dict(block.named_buffers())
    for name, module in block.named_modules():
        tensors |= {f"{name}.{k}".strip("."): v for k, v in vars(module).items() if isinstance(v, Tensor)}
    return {name: (id(tensor), tensor._version) for name, tensor in tensors.items()}


@contextmanager
def _without_side_effects(block: nn.Module, x: Tensor) -> Iterator[None]:
    """No graph, no batch norm statistics, no weights left in autocast's cache (they would carry no graph)."""
    kind = x.device.type
    autocast = autocast_without_cache(kind, autocast_dtype(kind))
    with torch.no_grad(), autocast, frozen_statistics(block), RngState.capture(x.device).replay():
        yield


def _own_output(block: nn.Module, program: BlockProgram, x: Tensor, arguments: Arguments) -> Any:
    """The state that the block itself returns."""
    with _without_side_effects(block, x):
        # Not block(): a rewired block's forward is replaced.
        returned = arguments.call(type(block).forward, block, x.clone())
    return returned if program.others is None else returned[0]


def _written_since(block: nn.Module, versions: Mapping[str, tuple[int, int]]) -> list[str]:
    return [key for key, version in tensor_versions(block).items() if versions.get(key) != version]


def check(block: nn.Module, program: BlockProgram, x: Tensor, arguments: Arguments, *, name: str) -> bool:
    """Compare block(x) with its branches, in the present mode, with the same random numbers.

    x: the block's input, any shape. Returns whether they are equal bit for bit. Raises ValueError where they
    differ by more than roundings, or where the block's forward writes to its buffers or draws random numbers
    that recomputation cannot replay.
    """
    versions, random_state = tensor_versions(block), python_random_state()
    expected = _own_output(block, program, x, arguments)
    if python_random_state() != random_state:
        raise RefusedError(name, "draws from Python's or NumPy's random numbers, want torch's (replayable)")
    if _written_since(block, versions):
        versions = tensor_versions(block)  # a memo is made once
        _own_output(block, program, x, arguments)
    if written := _written_since(block, versions):
        raise RefusedError(name, f"its forward writes to {', '.join(written)}; leave this block out")
    with _without_side_effects(block, x):
        found = program.run(block, x, arguments.tensors)
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise RefusedError(name, f"its branches do not add up to the shape of its output; {ADVICE}")
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    # Roundings only: the same operations, sometimes in another order. A wrong trace is off by whole branches.
    limit = torch.finfo(expected.dtype).eps ** 0.5
    if expected.isfinite().all() and error > limit:
        raise RefusedError(name, f"its branches differ from its own output by {error:.1g} of it; {ADVICE}")
    return bool(torch.equal(found, expected))
