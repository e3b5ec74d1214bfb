"""Finds residual branches in a block that also does something else to its state, before or after them.

As in norm(x + F(x)), or in a block that changes the shape first and then adds to what it has made. Its
operations are cut where all that depends on the input flows through one value: into branches, each from a
state to the sum, and into plain operations, which run again in the backward pass.
"""

from __future__ import annotations

from .branches import BranchSearch, NotResidualError
from .layout import Layout, arranges
from .traced_block import BlockProgram, BranchProgram, PlainProgram


class NothingResidualError(NotResidualError):
    """Not even a part of a program is residual."""


class SegmentSearch(BranchSearch):
    """Splits a program into branches and plain operations, which take turns."""

    def block_program(self) -> BlockProgram:
        """At least one branch, and what is plain. Raises NotResidualError."""
        end = self.output()
        if 0 not in self._ancestors([end], -1):
            raise NothingResidualError("what it returns does not depend on its input")
        branches: list[BranchProgram] = []
        plain: dict[int, PlainProgram] = {}  # by the number of branches after it
        while end != 0:
            addition, branch = self._last_sum_before(end)
            if addition != end:
                plain[len(branches)] = self._plain_between(addition, end)
            if branch is None:
                break
            self.states.append(addition)
            branches.insert(0, branch)
            end = branch.input_state
        if not branches:
            raise NothingResidualError("nothing in it is residual")
        self.states.append(0)
        self.plain_operations = {i for p in plain.values() for i, _ in p.program.operations}
        self._check_writes()
        self._check_random([*branches, *(p.program for p in plain.values())])
        in_order = {len(branches) - after: p for after, p in plain.items()}
        return BlockProgram(tuple(branches), False, plain=dict(sorted(in_order.items())))

    def _last_sum_before(self, end: int) -> tuple[int, BranchProgram | None]:
        """The last residual addition on every way from the input to `end`, and its branch; 0 if none is."""
        for i in range(end, 0, -1):
            if not self._is_addition(i) or (i != end and 0 in self._ancestors([end], i)):
                continue
            try:
                return i, self._branch_before(i)[0]
            except NotResidualError:
                continue
        return 0, None

    def _start_of(self, state: int) -> tuple[int, Layout]:
        """A state is a state in whatever arrangement; to arrange it anew is a plain operation."""
        return state, ()

    def _plain_between(self, start: int, end: int) -> PlainProgram:
        """What computes `end` from `start`."""
        inside = self._ancestors([end], start)
        program = BranchProgram.of(start, {i: self.operations[i] for i in sorted(inside)}, (end,))
        roots = self.operations[start].roots
        return PlainProgram(
            program,
            writes=any(self.operations[i].writes & roots for i in inside),
            keeps_nothing=all(self._arranges(i) for i in inside),
        )

    def _arranges(self, i: int) -> bool:
        operation = self.operations[i]
        return arranges(operation, self._module(operation), self._name(operation))

    def _protected(self, i: int) -> list[int]:
        """The states that an operation must not write to; a plain one has a copy of its own of all but x."""
        return [0] if i in self.plain_operations else super()._protected(i)
