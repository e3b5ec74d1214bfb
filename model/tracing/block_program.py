"""What a block does, as branches that add to its state and operations around them, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .layout import Layout, arrange, undo
from .operations import Operation, insert_results


@dataclass(frozen=True)
class BranchProgram:
    """One branch: the operations from the state it starts from to the terms that it adds to it."""

    input_state: int  # index of the operation whose result is its input
    operations: tuple[tuple[int, Operation], ...]  # with their indices, in order
    terms: tuple[int, ...]  # the operations whose sum is the branch
    unneeded: tuple[tuple[int, ...], ...]  # after each operation: results that no later one takes
    enter: Layout = ()  # arranges the block's input as the branch's
    leave: Layout = ()  # as the sum of the terms is arranged

    @staticmethod
    def of(input_state: int, operations: Mapping[int, Operation], terms: tuple[int, ...]) -> BranchProgram:
        """The branch that runs `operations`, given by index."""
        order = sorted(operations)
        last_use = {i: user for user in order for i in (*operations[user].inputs, user)}
        kept = {*terms, input_state}
        unneeded = (tuple(i for i, user in last_use.items() if user == n and i not in kept) for n in order)
        return BranchProgram(input_state, tuple((i, operations[i]) for i in order), terms, tuple(unneeded))

    def run(self, owner: nn.Module, x: Tensor, arguments: Sequence[Tensor] = ()) -> Any:
        """F(x), with the modules and parameters of `owner`, and the tensors that it was called with."""
        arranged = arrange(self.leave, owner, x)
        first, *others = self.compute(owner, {self.input_state: arranged[len(self.enter)]}, arguments)
        for other in others:
            first = first + other
        return undo(self.leave, arranged, first)

    def compute(self, owner: nn.Module, values: dict[int, Any], arguments: Sequence[Tensor]) -> list[Any]:
        """The terms; values: results by index that the operations start from, which changes."""
        for (index, operation), unneeded in zip(self.operations, self.unneeded, strict=True):
            values[index] = operation.run(owner, values, arguments)
            for i in unneeded:
                del values[i]
        return [values[i] for i in self.terms]


@dataclass(frozen=True)
class PlainStep:
    """Operations around branches, such as a norm after the sum: they run again in the backward pass."""

    inputs: tuple[int, ...]  # the results that it starts from
    result: int  # the operation that it computes
    program: BranchProgram
    written: frozenset[int]  # of `inputs`: those that it changes in place
    keeps_nothing: bool  # only arranges the elements of its input anew

    def run(self, owner: nn.Module, arguments: Sequence[Tensor], *inputs: Tensor) -> Any:
        """The result; the inputs, any shapes, are left as they are."""
        pairs = zip(self.inputs, inputs, strict=True)
        values = {i: x.clone() if i in self.written else x for i, x in pairs}
        return self.program.compute(owner, values, arguments)[0]


@dataclass(frozen=True)
class BranchStep:
    """Branches one after the other, the states between which nothing else uses."""

    inputs: tuple[int]  # the state before the first
    result: int  # that after the last
    branches: tuple[BranchProgram, ...]


@dataclass(frozen=True)
class BlockProgram:
    """All branches of a block, first to last."""

    branches: tuple[BranchProgram, ...]
    post_activation: bool
    # What the block returns after its state, if it returns a tuple: values, or tensors as ResultOf arguments
    others: tuple[Any, ...] | None = None
    steps: tuple[PlainStep | BranchStep, ...] = ()  # of a block that does more than to add to its state

    @property
    def signature(self) -> tuple[int, bool]:
        """What must be the same in every training mode."""
        return len(self.branches), self.post_activation

    def run(self, owner: nn.Module, x: Tensor, arguments: Sequence[Tensor] = ()) -> Tensor:
        """The block's state, step by step."""
        if self.steps:
            return self.run_steps(
                x,
                lambda step, inputs: step.run(owner, arguments, *inputs),
                lambda step, state: _added(step.branches, owner, state, arguments),
            )
        x = _added(self.branches, owner, x, arguments)
        return F.relu(x) if self.post_activation else x

    def run_steps(
        self,
        x: Tensor,
        plain: Callable[[PlainStep, list[Tensor]], Tensor],
        branches: Callable[[BranchStep, Tensor], Tensor],
    ) -> Tensor:
        """The last step's result, with these two to run steps of either kind; 0 is the block's input."""
        values = {0: x}
        for n, step in enumerate(self.steps):
            inputs = [values[i] for i in step.inputs]
            result = plain(step, inputs) if isinstance(step, PlainStep) else branches(step, inputs[0])
            needed = {i for later in self.steps[n + 1 :] for i in later.inputs}
            values = {i: value for i, value in {**values, step.result: result}.items() if i in needed}
        return result

    def output(self, state: Tensor, arguments: Sequence[Tensor]) -> Any:
        """What the block returns, with this state."""
        if self.others is None:
            return state
        return (state, *insert_results(self.others, dict(enumerate(arguments))))


def _added(
    branches: Sequence[BranchProgram], owner: nn.Module, x: Tensor, arguments: Sequence[Tensor]
) -> Tensor:
    for branch in branches:
        x = x + branch.run(owner, x, arguments)
    return x
