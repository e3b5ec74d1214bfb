"""Finds the residual branches of a traced block: the additions on the way from its output to its input."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .block_program import BlockProgram, BranchProgram
from .layout import Layout, arranges
from .operations import Operation, Program, ResultOf

_ADDITIONS = frozenset({"add", "add_", "iadd"})
_RELUS = frozenset({"relu", "relu_"})
# Functions and methods whose result differs from call to call.
_RANDOM = frozenset(
    {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli"}
    | {"bernoulli_", "uniform_", "normal", "normal_", "multinomial", "exponential_", "random_", "dropout"}
)


class NotResidualError(Exception):
    """Why a program is not residual; `transition` if only its shortcut is in the way.

    num_mixed: how many branches there are in part of it.
    """

    def __init__(self, reason: str, transition: bool = False) -> None:
        super().__init__(reason)
        self.transition, self.num_mixed = transition, 0


def _with_layouts(branches: list[BranchProgram], paths: list[Layout]) -> list[BranchProgram]:
    """The branches with how their states are arranged; paths: the change before each of them."""
    layout: Layout = ()
    arranged = []
    for branch, path in zip(branches, paths, strict=True):
        arranged.append(replace(branch, enter=layout, leave=layout + path))
        layout += path
    return arranged


class BranchSearch:
    """Splits the operations of a program into branches; operations are named by their index.

    The states are the input, operation 0, and the additions on the way from the output back to it.
    """

    def __init__(self, program: Program, block: nn.Module) -> None:
        self.program, self.block, self.operations = program, block, program.operations
        self.num_users = [0] * len(self.operations)
        for operation in self.operations:
            for i in operation.inputs:
                self.num_users[i] += 1
        self.states: list[int] = []  # from the last to the first, with the final ReLU

    def output(self) -> int:
        """The operation whose result the block returns. Raises NotResidualError."""
        if not isinstance(self.program.output, ResultOf):
            kind = type(self.program.output).__name__
            raise NotResidualError(f"it returns a {kind}, not one tensor")
        return self._unchanged(self.program.output.index)

    def block_program(self) -> BlockProgram:
        """The branches, first to last. Raises NotResidualError."""
        state = self.output()
        post_activation = self._ends_in_relu(state)
        if post_activation:
            self.states.append(state)
            state = self._unchanged(self.operations[state].inputs[0])
        state, _ = self._arranged_from(state)
        branches: list[BranchProgram] = []
        paths: list[Layout] = []  # from the state before each branch to the term that it is added to
        while state != 0:
            self.states.append(state)
            branch, path = self._branch_before(state)
            branches.insert(0, branch)
            paths.insert(0, path)
            state = branch.input_state
        self.states.append(0)
        branches = _with_layouts(branches, paths)
        if not branches:
            raise NotResidualError("it returns its input: no branch")
        if post_activation and len(branches) > 1:
            raise NotResidualError(f"it applies ReLU after {len(branches)} branches, want one")
        self._check_writes()
        self._check_random(branches)
        return BlockProgram(tuple(branches), post_activation)

    def _ends_in_relu(self, index: int) -> bool:
        """Whether the operation is a ReLU of an addition."""
        return self._is_relu(index) and self._is_addition(self._unchanged(self.operations[index].inputs[0]))

    def _describe(self, index: int) -> str:
        operation = self.operations[index]
        description = operation.describe(self.block)
        if operation.kind == "module" and operation.target in self.program.untraceable:
            reason = self.program.untraceable[operation.target]
            return f"{description}, which cannot be traced ({reason})"
        return description

    def _module(self, operation: Operation) -> nn.Module | None:
        return self.block.get_submodule(operation.target) if operation.kind == "module" else None

    def _unchanged(self, index: int) -> int:
        """The operation whose value this one returns unchanged; itself if it computes something."""
        operation = self.operations[index]
        if isinstance(self._module(operation), nn.Identity) or operation.name == "clone":
            return self._unchanged(operation.inputs[0])
        return index

    def _arranged_from(self, index: int) -> tuple[int, Layout]:
        """The operation whose elements this one arranges anew, and how; itself if it computes something."""
        path: list[Operation] = []
        operation = self.operations[index]
        while arranges(operation, self._module(operation)):
            path.insert(0, operation)
            index = operation.inputs[0]
            operation = self.operations[index]
        return index, tuple(path)

    def _is_relu(self, index: int) -> bool:
        operation = self.operations[index]
        return operation.name in _RELUS or type(self._module(operation)) is nn.ReLU

    def _is_addition(self, index: int) -> bool:
        return self.operations[index].name in _ADDITIONS

    def _operands(self, index: int) -> list[int]:
        operation = self.operations[index]
        values = [*operation.args, *operation.kwargs.values()]
        if len(values) != 2 or not all(isinstance(value, ResultOf) for value in values):
            raise NotResidualError(f"it adds with a factor or a number in {self._describe(index)}")
        return [self._unchanged(value.index) for value in values]

    def _ancestors(self, starts: list[int], stop: int) -> set[int]:
        """The operations that `starts` depend on, and these; as far back as `stop`, which is left out."""
        found, left = set[int](), [i for i in starts if i != stop]
        while left:
            i = left.pop()
            if i not in found:
                found.add(i)
                left += [j for j in self.operations[i].needs if j != stop]
        return found

    def _branch_before(self, addition: int) -> tuple[BranchProgram, Layout]:
        """The branch that ends with the addition, one of whose terms is the state that it starts from."""
        if not self._is_addition(addition):
            raise NotResidualError(
                f"its output comes from {self._describe(addition)}, not from adding to its input"
            )
        terms = self._operands(addition)
        while (state := self._state_among(terms)) is None:
            sums = [term for term in terms if self._only_adds(term)]
            if not sums:
                raise self._no_shortcut(addition, terms)
            position = terms.index(max(sums))
            terms[position : position + 1] = self._operands(terms[position])  # x + f + g: one branch f + g
        start, path = self._start_of(state)
        others = [term for term in terms if term != state]
        return self._branch_between(start, addition, others, len(terms) - 1), path

    def _start_of(self, state: int) -> tuple[int, Layout]:
        """Where the branch starts whose sum has this state as a term, and how the state is arranged since."""
        return self._arranged_from(state)

    def _state_among(self, terms: list[int]) -> int | None:
        """The term through which alone the others depend on the input, as it is or arranged anew."""
        for state in terms:
            start, _ = self._start_of(state)
            others = [term for term in terms if term != state]
            depends_on_input = start == 0 or 0 in self._ancestors([start], -1)
            if depends_on_input and 0 not in self._ancestors(others, start):
                return state
        return None

    def _only_adds(self, index: int) -> bool:
        return self._is_addition(index) and self.num_users[index] == 1 and not self.operations[index].writes

    def _branch_between(self, state: int, addition: int, others: list[int], num_others: int) -> BranchProgram:
        """The branch from `state` to `addition`, which adds `others` to it."""
        if len(others) != num_others:
            raise NotResidualError(
                f"it adds the state to itself in {self._describe(addition)}: no plain x + F(x)"
            )
        end = self.operations[addition]
        late_writes = [i for i in end.needs if i not in end.inputs and i > state]
        inside = self._ancestors([*others, *late_writes], state)
        if 0 in inside:
            raise self._uses_earlier_state(addition)
        if not any(state in self.operations[i].needs for i in inside):
            raise NotResidualError(f"it adds what does not depend on its input in {self._describe(addition)}")
        return BranchProgram.of(state, {i: self.operations[i] for i in inside}, tuple(others))

    def _uses_earlier_state(self, addition: int) -> NotResidualError:
        where = f"a branch before {self._describe(addition)}"
        return NotResidualError(f"{where} uses an earlier state than it is added to")

    def _no_shortcut(self, addition: int, terms: list[int]) -> NotResidualError:
        if len(terms) > 2 or any(self._is_addition(term) for term in terms):
            return self._uses_earlier_state(addition)
        shortest = min(terms, key=lambda term: len(self._ancestors([term], 0)))
        if any(self.operations[i].kind == "module" for i in self._ancestors([shortest], 0)):
            operation = self.operations[shortest]
            name = operation.callers[0] if operation.callers else self._describe(shortest)
            return NotResidualError(
                f"its shortcut is {name}, not its input: it changes the shape: transition", True
            )
        return NotResidualError(f"it adds to the result of {self._describe(shortest)}, not to its input")

    def _check_writes(self) -> None:
        for i, operation in enumerate(self.operations):
            if not operation.writes:
                continue
            owned = [j for j in operation.writes if self.operations[j].kind in ("attribute", "constant")]
            if owned:
                raise NotResidualError(f"{self._describe(i)} writes to {self._describe(owned[0])} in forward")
            for state in self._protected(i):
                if state < i and operation.writes & self.operations[state].roots:
                    raise NotResidualError(
                        f"{self._describe(i)} works in place on the state; a branch must not"
                    )

    def _protected(self, i: int) -> list[int]:
        """The states that an operation must not write to."""
        return [] if i in self.states else self.states

    def _check_random(self, branches: list[BranchProgram]) -> None:
        """A random number used by two branches would be drawn twice."""
        for i, operation in enumerate(self.operations):
            random = operation.name in _RANDOM or "Dropout" in type(self._module(operation)).__name__
            if random and sum(any(i == j for j, _ in branch.operations) for branch in branches) > 1:
                raise NotResidualError(f"two branches share the random numbers of {self._describe(i)}")
