"""Runs the branches of a traced block with the block's own modules, and compares their sum with the block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..recompute import RngState, frozen_statistics
from .graph import python_random_state
from .operations import Operation

ADVICE = "if it is residual all the same, name its branches with branches="


@dataclass(frozen=True)
class BranchProgram:
    """One branch: the operations from the state it starts from to the terms that it adds to it."""

    input_state: int  # index of the operation whose result is its input
    operations: tuple[tuple[int, Operation], ...]  # with their indices, in order
    terms: tuple[int, ...]  # the operations whose sum is the branch
    unneeded: tuple[tuple[int, ...], ...]  # after each operation: results that no later one takes

    @staticmethod
    def of(input_state: int, operations: Mapping[int, Operation], terms: tuple[int, ...]) -> BranchProgram:
        """The branch that runs `operations`, given by index."""
        order = sorted(operations)
        last_use = {i: user for user in order for i in (*operations[user].inputs, user)}
        kept = {*terms, input_state}
        unneeded = (tuple(i for i, user in last_use.items() if user == n and i not in kept) for n in order)
        return BranchProgram(input_state, tuple((i, operations[i]) for i in order), terms, tuple(unneeded))

    def run(self, owner: nn.Module, x: Tensor) -> Any:
        """F(x), with the modules and parameters of `owner`."""
        values: dict[int, Any] = {self.input_state: x}
        for (index, operation), unneeded in zip(self.operations, self.unneeded, strict=True):
            values[index] = operation.run(owner, values)
            for i in unneeded:
                del values[i]
        first, *others = (values[i] for i in self.terms)
        for other in others:
            first = first + other
        return first


@dataclass(frozen=True)
class BlockProgram:
    """All branches of a block, first to last."""

    branches: tuple[BranchProgram, ...]
    post_activation: bool

    @property
    def signature(self) -> tuple[int, bool]:
        """What must be the same in every training mode."""
        return len(self.branches), self.post_activation

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        """The block's output, branch after branch."""
        for branch in self.branches:
            x = x + branch.run(owner, x)
        return F.relu(x) if self.post_activation else x


TrainingFlags = tuple[bool, ...]


def training_flags(block: nn.Module) -> TrainingFlags:
    """Which of its modules are in training mode."""
    return tuple(module.training for module in block.modules())


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
    """A block and its programs, one for each combination of training flags that occurred.

    Programs hold names of modules, not modules: a deep copy runs the copied block.
    """

    block: nn.Module
    name: str
    trace: Callable[[nn.Module], BlockProgram]
    programs: dict[TrainingFlags, BlockProgram] = field(default_factory=dict)
    checked: set[TrainingFlags] = field(default_factory=set)

    def program(self, flags: TrainingFlags) -> BlockProgram:
        """The program for the block's present training flags; traced where these are new."""
        if flags not in self.programs:
            program, known = self.trace(self.block), next(iter(self.programs.values()), None)
            if known is not None and program.signature != known.signature:
                raise ValueError(f"{self.name}: another number of branches in this training mode; {ADVICE}")
            self.programs[flags] = program
        return self.programs[flags]

    def run(self, index: int, x: Tensor) -> Tensor:
        """F_index(x), the same shape as x. Raises ValueError where the trace is wrong."""
        flags = training_flags(self.block)
        program = self.program(flags)
        # A tensor of another type is fake (a memory estimate), or has no values to compare.
        if index == 0 and flags not in self.checked and type(x) is Tensor and not x.is_meta:
            check(self.block, program, x, name=self.name)
            self.checked.add(flags)
        version = None if x.is_inference() else x._version
        y = program.branches[index].run(self.block, x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{self.name}: branch {index} got {tuple(x.shape)} and returned {got}, want the same shape; "
                "leave this block out"
            )
        if version is not None and x._version != version:
            raise ValueError(f"{self.name}: branch {index} changes its input in place, want it left alone")
        return y


@dataclass
class TracedBranch:
    """One branch of a traced block as a function."""

    traced: TracedBlock
    index: int

    def __call__(self, x: Tensor) -> Tensor:
        """F(x): the same shape."""
        return self.traced.run(self.index, x)


def _tensor_versions(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of every buffer and every tensor that is a plain attribute."""
    tensors = dict(block.named_buffers())
    for name, module in block.named_modules():
        tensors |= {f"{name}.{k}".strip("."): v for k, v in vars(module).items() if isinstance(v, Tensor)}
    return {name: (id(tensor), tensor._version) for name, tensor in tensors.items()}


@contextmanager
def _without_side_effects(block: nn.Module, x: Tensor) -> Iterator[None]:
    """No graph, no batch norm statistics, no weights left in autocast's cache (they would carry no graph)."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if enabled else None
    autocast = torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
    with torch.no_grad(), autocast, frozen_statistics(block), RngState.capture(x.device).replay():
        yield


def check(block: nn.Module, program: BlockProgram, x: Tensor, *, name: str) -> None:
    """Compare block(x) with its branches, in the present mode, with the same random numbers.

    x: the block's input, any shape. Raises ValueError where they differ by more than roundings, or where the
    block's forward writes to its buffers or draws random numbers that recomputation cannot replay.
    """
    versions, random_state = _tensor_versions(block), python_random_state()
    with _without_side_effects(block, x):
        expected = type(block).forward(block, x.clone())  # not block(): a rewired block's forward is replaced
    if python_random_state() != random_state:
        raise ValueError(f"{name}: draws from Python's or NumPy's random numbers, want torch's (replayable)")
    written = [key for key, version in _tensor_versions(block).items() if versions.get(key) != version]
    if written:
        raise ValueError(f"{name}: its forward writes to {', '.join(written)}; leave this block out")
    with _without_side_effects(block, x):
        found = program.run(block, x)
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise ValueError(f"{name}: its branches do not add up to the shape of its output; {ADVICE}")
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    # Roundings only: the same operations, sometimes in another order. A wrong trace is off by whole branches.
    limit = torch.finfo(expected.dtype).eps ** 0.5
    if expected.isfinite().all() and error > limit:
        raise ValueError(f"{name}: its branches differ from its own output by {error:.1g} of it; {ADVICE}")
