"""Finds residual branches in a block that also does something else to its state, before or after them.

As in norm(x + F(x)), in a block that changes the shape first and then adds to what it has made, or in one
that adds to its first token and hands on the others. Its operations are divided into branches, each from a
state to the sum, and plain operations, which run again in the backward pass.
"""

from __future__ import annotations

from .block_program import BlockProgram, BranchProgram, BranchStep, PlainStep
from .branches import BranchSearch, NotResidualError
from .layout import Layout, arranges


class NothingResidualError(NotResidualError):
    """Not even a part of a program is residual."""


class SegmentSearch(BranchSearch):
    """Splits a program into branches and plain operations, which take turns."""

    def block_program(self) -> BlockProgram:
        """At least one branch, and what is plain. Raises NotResidualError."""
        end = self.output()
        sums = self._residual_sums(end)
        if not sums:
            raise NothingResidualError("nothing in it is residual")
        steps = _joined(self._steps(sums, end))
        plain = [step.program for step in steps if isinstance(step, PlainStep)]
        branches = [branch for step in steps if isinstance(step, BranchStep) for branch in step.branches]
        self.states = [*sorted(sums, reverse=True), 0]
        self.plain_operations = {i for program in plain for i, _ in program.operations}
        self._check_writes()
        self._check_random([*branches, *plain])
        self._check_shared([*branches, *plain])
        return BlockProgram(tuple(branches), False, steps=steps)

    def _residual_sums(self, end: int) -> dict[int, BranchProgram]:
        """The additions on the way to `end` that add to a state what depends on it alone, outer ones.

        Where something else uses what the branch computes on its way, the addition is none of them.
        """
        found: dict[int, BranchProgram] = {}
        within = set[int]()
        on_way = self._ancestors([end], -1)
        for i in sorted(on_way, reverse=True):
            if i in within or not self._is_addition(i):
                continue
            try:
                branch, _ = self._branch_before(i)
            except NotResidualError:
                continue
            inside = {j for j, _ in branch.operations}
            if not any(self._takes(k, inside) for k in on_way - inside - {i}):
                found[i] = branch
                within |= inside
        return found

    def _takes(self, i: int, results: set[int]) -> bool:
        """Whether the operation takes one of these results that depends on the input."""
        return any(0 in self._ancestors([j], -1) for j in results.intersection(self.operations[i].needs))

    def _steps(self, sums: dict[int, BranchProgram], end: int) -> list[PlainStep | BranchStep]:
        """Every sum after what computes the state that it is added to; last what computes `end`."""
        steps: list[PlainStep | BranchStep] = []
        available = {0}
        for i in sorted(sums):
            state = sums[i].input_state
            if state not in available:
                steps.append(self._plain_step(available, state))
            steps.append(BranchStep((state,), i, (sums[i],)))
            available |= {state, i}
        if end not in available:
            steps.append(self._plain_step(available, end))
        return steps

    def _start_of(self, state: int) -> tuple[int, Layout]:
        """A state is a state in whatever arrangement; to arrange it anew is a plain operation."""
        return state, ()

    def _plain_step(self, available: set[int], end: int) -> PlainStep:
        """What computes `end` from results that are there."""
        inside, inputs, left = set[int](), set[int](), [end]
        while left:
            i = left.pop()
            if i in available:
                inputs.add(i)
            elif i not in inside:
                inside.add(i)
                left += self.operations[i].needs
        writes = frozenset[int]().union(*(self.operations[i].writes for i in inside))
        return PlainStep(
            tuple(sorted(inputs)),
            end,
            BranchProgram.of(-1, {i: self.operations[i] for i in inside}, (end,)),
            frozenset(i for i in inputs if self.operations[i].roots & writes),
            all(self._arranges(i) for i in inside),
        )

    def _check_shared(self, programs: list[BranchProgram]) -> None:
        """A module that two parts call, such as a batch norm, would run twice."""
        called = [i for p in programs for i, operation in p.operations if operation.kind == "module"]
        shared = [i for i in called if called.count(i) > 1]
        if shared:
            raise NothingResidualError(f"two parts of it use what {self._describe(shared[0])} returns")

    def _arranges(self, i: int) -> bool:
        operation = self.operations[i]
        return arranges(operation, self._module(operation))

    def _protected(self, i: int) -> list[int]:
        """The states that an operation must not write to; a plain one has a copy of its own of all but x."""
        return [0] if i in self.plain_operations else super()._protected(i)


def _joined(steps: list[PlainStep | BranchStep]) -> tuple[PlainStep | BranchStep, ...]:
    """The same with runs of branches as one step each, where nothing else uses the states between."""
    found: list[PlainStep | BranchStep] = []
    for n, step in enumerate(steps):
        last = found[-1] if found else None
        if isinstance(step, BranchStep) and isinstance(last, BranchStep) and step.inputs[0] == last.result:
            users = sum(later.inputs.count(last.result) for later in steps[n:])
            if users == 1:
                found.pop()
                step = BranchStep(last.inputs, step.result, last.branches + step.branches)
        found.append(step)
    return tuple(found)
