"""Find the sums that lead from the output of a traced block back to its input: its residual branches."""

from __future__ import annotations

from torch import nn

from .operations import Program, Ref, Step
from .traced_block import Piece, Plan

_ADDITIONS = frozenset({"add", "add_", "iadd"})
_RELUS = frozenset({"relu", "relu_"})
# Functions and methods whose result differs from call to call.
_RANDOM = frozenset(
    {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli"}
    | {"bernoulli_", "uniform_", "normal", "normal_", "multinomial", "exponential_", "random_", "dropout"}
)


class Refused(Exception):
    """Why a program is not residual; `transition` if only its shortcut is in the way."""

    def __init__(self, reason: str, transition: bool = False) -> None:
        super().__init__(reason)
        self.transition = transition


class Sums:
    """The additions that lead from the output of a program back to its input."""

    def __init__(self, program: Program, block: nn.Module) -> None:
        self.program, self.block, self.steps = program, block, program.steps
        self.users = [0] * len(self.steps)
        for step in self.steps:
            for i in step.inputs:
                self.users[i] += 1
        self.states: list[int] = []  # from the last to the first
        self.ends: set[int] = set()  # the additions and the final ReLU

    def plan(self) -> Plan:
        """The branches, first to last. Raises Refused."""
        if not isinstance(self.program.output, Ref):
            kind = type(self.program.output).__name__
            raise Refused(f"it returns a {kind}, not one tensor")
        now = self._same(self.program.output.index)
        post_activation = self._is_relu(now) and self._is_addition(self._same(self.steps[now].inputs[0]))
        if post_activation:
            self._note(now)
            now = self._same(self.steps[now].inputs[0])
        pieces: list[Piece] = []
        while now != 0:
            self._note(now)
            pieces.insert(0, self._branch(now))
            now = pieces[0].entry
        self._note(0)
        if not pieces:
            raise Refused("it returns its input: no branch")
        if post_activation and len(pieces) > 1:
            raise Refused(f"it applies ReLU after {len(pieces)} branches, want one")
        self._check_writes()
        self._check_random(pieces)
        return Plan(tuple(pieces), post_activation)

    def _note(self, state: int) -> None:
        self.states.append(state)
        if state != 0:
            self.ends.add(state)

    def _describe(self, index: int) -> str:
        step = self.steps[index]
        words = step.describe(self.block)
        why = self.program.closed.get(str(step.target)) if step.kind == "module" else None
        return words if why is None else f"{words}, which cannot be traced ({why})"

    def _name(self, step: Step) -> str:
        if step.kind == "method":
            return str(step.target)
        return getattr(step.target, "__name__", "") if step.kind == "function" else ""

    def _module(self, step: Step) -> nn.Module | None:
        return self.block.get_submodule(step.target) if step.kind == "module" else None

    def _same(self, index: int) -> int:
        """The step whose value this step only hands on."""
        step = self.steps[index]
        if isinstance(self._module(step), nn.Identity) or self._name(step) == "clone":
            return self._same(step.inputs[0])
        return index

    def _is_relu(self, index: int) -> bool:
        step = self.steps[index]
        return self._name(step) in _RELUS or type(self._module(step)) is nn.ReLU

    def _is_addition(self, index: int) -> bool:
        return self._name(self.steps[index]) in _ADDITIONS

    def _operands(self, index: int) -> list[int]:
        step = self.steps[index]
        values = [*step.args, *step.kwargs.values()]
        if len(values) != 2 or not all(isinstance(value, Ref) for value in values):
            raise Refused(f"it adds with a factor or a number in {self._describe(index)}")
        return [self._same(value.index) for value in values]

    def _reach(self, starts: list[int], stop: int) -> set[int]:
        """The steps that lead to `starts`, as far back as `stop`, which is left out."""
        found, left = set[int](), [i for i in starts if i != stop]
        while left:
            i = left.pop()
            if i not in found:
                found.add(i)
                left += [j for j in self.steps[i].needs if j != stop]
        return found

    def _branch(self, end: int) -> Piece:
        """The branch that ends with the addition `end`: one of the terms is the state it starts from."""
        if not self._is_addition(end):
            raise Refused(f"its output comes from {self._describe(end)}, not from adding to its input")
        terms = self._operands(end)
        while True:
            for state in terms:
                others = [term for term in terms if term != state]
                if 0 not in self._reach(others, state) and (state == 0 or 0 in self._reach([state], -1)):
                    return self._piece(end, state, terms, others)
            inner = [t for t in terms if self._only_adds(t)]
            if not inner:
                raise self._no_skip(end, terms)
            at = terms.index(max(inner))
            terms[at : at + 1] = self._operands(terms[at])  # x + f(x) + g(x): one branch f + g

    def _only_adds(self, index: int) -> bool:
        return self._is_addition(index) and self.users[index] == 1 and not self.steps[index].writes

    def _piece(self, end: int, state: int, terms: list[int], others: list[int]) -> Piece:
        if len(others) != len(terms) - 1:
            raise Refused(f"it adds the state to itself in {self._describe(end)}: no plain x + F(x)")
        late = [i for i in self.steps[end].needs if i not in self.steps[end].inputs and i > state]
        steps = self._reach([*others, *late], state)
        if 0 in steps:
            raise Refused(f"a branch before {self._describe(end)} uses an earlier state than it is added to")
        if not any(state in self.steps[i].needs for i in steps):
            raise Refused(f"it adds what does not depend on its input in {self._describe(end)}")
        return Piece.of(state, {i: self.steps[i] for i in steps}, tuple(others))

    def _no_skip(self, end: int, terms: list[int]) -> Refused:
        if len(terms) > 2 or any(self._is_addition(term) for term in terms):
            return Refused(f"a branch before {self._describe(end)} uses an earlier state than it is added to")
        short = min(terms, key=lambda term: len(self._reach([term], 0)))
        if any(self.steps[i].kind == "module" for i in self._reach([short], 0)):
            step = self.steps[short]
            name = step.inside[0] if step.inside else self._describe(short)
            return Refused(f"its shortcut is {name}, not its input: it changes the shape: transition", True)
        return Refused(f"it adds to the result of {self._describe(short)}, not to its input")

    def _check_writes(self) -> None:
        for i, step in enumerate(self.steps):
            if not step.writes:
                continue
            owned = [j for j in step.writes if self.steps[j].kind in ("attribute", "constant")]
            if owned:
                raise Refused(f"{self._describe(i)} writes to {self._describe(owned[0])} in forward")
            for state in self.states:
                if state < i and i not in self.ends and step.writes & self.steps[state].roots:
                    raise Refused(f"{self._describe(i)} works in place on the state; a branch must not")

    def _check_random(self, pieces: list[Piece]) -> None:
        """A random number used by two branches would be drawn twice."""
        for i, step in enumerate(self.steps):
            random = self._name(step) in _RANDOM or "Dropout" in type(self._module(step)).__name__
            if random and sum(any(i == j for j, _ in piece.steps) for piece in pieces) > 1:
                raise Refused(f"two branches share the random numbers of {self._describe(i)}")
