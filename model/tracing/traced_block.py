"""Run the branches that a trace found, with the block's own modules, and hold them against the block."""

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
from .operations import Step

WAY_OUT = "if it is residual all the same, name its branches with branches="


@dataclass(frozen=True)
class Piece:
    """One branch: the steps from the state it takes to the sum it adds."""

    entry: int  # the step that makes its state
    steps: tuple[tuple[int, Step], ...]
    results: tuple[int, ...]  # their sum is the branch
    last_uses: tuple[tuple[int, ...], ...]  # after each step, the results not needed any more

    @staticmethod
    def of(entry: int, steps: Mapping[int, Step], results: tuple[int, ...]) -> Piece:
        """The piece that runs `steps`, by number, in order."""
        last = {i: number for number in sorted(steps) for i in (*steps[number].inputs, number)}
        kept = {*results, entry}
        gone = (
            tuple(i for i, n in last.items() if n == number and i not in kept) for number in sorted(steps)
        )
        return Piece(entry, tuple(sorted(steps.items())), results, tuple(gone))

    def run(self, owner: nn.Module, x: Tensor) -> Any:
        """F(x)."""
        values: dict[int, Any] = {self.entry: x}
        for (number, step), gone in zip(self.steps, self.last_uses, strict=True):
            values[number] = step.run(owner, values)
            for i in gone:
                del values[i]
        first, *others = (values[i] for i in self.results)
        for other in others:
            first = first + other
        return first


@dataclass(frozen=True)
class Plan:
    """All branches of a block, first to last."""

    pieces: tuple[Piece, ...]
    post_activation: bool

    @property
    def shape(self) -> tuple[int, bool]:
        """What must not change from mode to mode."""
        return len(self.pieces), self.post_activation

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        """The block's output, branch after branch."""
        for piece in self.pieces:
            x = x + piece.run(owner, x)
        return F.relu(x) if self.post_activation else x


Mode = tuple[bool, ...]


def mode_of(block: nn.Module) -> Mode:
    """Which of its modules are in training mode."""
    return tuple(module.training for module in block.modules())


@contextmanager
def in_mode(block: nn.Module, training: bool) -> Iterator[None]:
    """Inside, all its modules are in one mode; afterwards each is as before."""
    before = [(module, module.training) for module in block.modules()]
    for module, _ in before:
        module.training = training
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@dataclass
class TracedBlock:
    """A block and its plans, one for each combination of training flags that was met.

    Plans hold names of modules, not modules: a deep copy runs the copied block.
    """

    block: nn.Module
    name: str
    plan_of: Callable[[nn.Module], Plan]
    plans: dict[Mode, Plan] = field(default_factory=dict)
    checked: set[Mode] = field(default_factory=set)

    def plan(self, mode: Mode) -> Plan:
        """That of the block's present mode; traced where it is new."""
        if mode not in self.plans:
            plan, known = self.plan_of(self.block), next(iter(self.plans.values()), None)
            if known is not None and plan.shape != known.shape:
                raise ValueError(f"{self.name}: another number of branches in this training mode; {WAY_OUT}")
            self.plans[mode] = plan
        return self.plans[mode]

    def run(self, index: int, x: Tensor) -> Tensor:
        """F_index(x), the same shape as x. Raises ValueError where the trace does not hold."""
        mode = mode_of(self.block)
        plan = self.plan(mode)
        # A tensor of another type is fake (a memory estimate), or has no values to compare.
        if index == 0 and mode not in self.checked and type(x) is Tensor and not x.is_meta:
            check(self.block, plan, x, name=self.name)
            self.checked.add(mode)
        version = None if x.is_inference() else x._version
        y = plan.pieces[index].run(self.block, x)
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


def _held(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of every buffer and every tensor that is a plain attribute."""
    found = dict(block.named_buffers())
    for name, module in block.named_modules():
        found |= {f"{name}.{k}".strip("."): v for k, v in vars(module).items() if isinstance(v, Tensor)}
    return {name: (id(tensor), tensor._version) for name, tensor in found.items()}


@contextmanager
def _aside(block: nn.Module, x: Tensor) -> Iterator[None]:
    """No graph, no batch norm statistics, no weights left in autocast's cache (they would carry no graph)."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if enabled else None
    autocast = torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
    with torch.no_grad(), autocast, frozen_statistics(block), RngState.capture(x.device).replay():
        yield


def check(block: nn.Module, plan: Plan, x: Tensor, *, name: str) -> None:
    """Compare block(x) with its branches, in the present mode, with the same random numbers.

    x: the block's input, any shape. Raises ValueError where they differ by more than roundings, or where the
    block's forward writes to its buffers or draws random numbers that recomputation cannot replay.
    """
    held, drawn = _held(block), python_random_state()
    with _aside(block, x):
        expected = type(block).forward(block, x.clone())  # not block(): a rewired block's forward is replaced
    if python_random_state() != drawn:
        raise ValueError(f"{name}: draws from Python's or NumPy's random numbers, want torch's (replayable)")
    written = [key for key, state in _held(block).items() if held.get(key) != state]
    if written:
        raise ValueError(f"{name}: its forward writes to {', '.join(written)}; leave this block out")
    with _aside(block, x):
        found = plan.run(block, x)
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise ValueError(f"{name}: its branches do not add up to the shape of its output; {WAY_OUT}")
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    # Roundings only: the same operations, sometimes in another order. A wrong trace is off by whole branches.
    limit = torch.finfo(expected.dtype).eps ** 0.5
    if expected.isfinite().all() and error > limit:
        raise ValueError(f"{name}: its branches differ from its own output by {error:.1g} of it; {WAY_OUT}")
