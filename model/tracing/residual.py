"""Proves from its trace that a block of any source is residual, or tells why not.

Residual: s_0 is the block's one input, s_{j+1} = s_j + F_j(s_j), where F_j takes nothing but s_j, parameters,
buffers and constants; the output is s_k, or relu(s_0 + F_0(s_0)). The branches then run the block's own
modules; nothing is copied and nothing registered. A mixed block has other operations before, between or after
its branches.

A trace cannot see everything (model/tracing/graph.py says what), so the first run of a block in each training
mode also runs the block itself, compares, and raises ValueError where they differ. Every run checks that
the branch keeps the shape and leaves its input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..reversible import Branch
from .arguments import NO_ARGUMENTS, Arguments, RefusedError, call_signature
from .block_program import BlockProgram, PlainStep
from .branches import BranchSearch, NotResidualError
from .graph import HOOKS, Untraceable, required_arguments, trace
from .operations import Program, ResultOf, insert_results, result_indices
from .segments import NothingResidualError, SegmentSearch
from .tape import tape
from .traced_block import ADVICE, TracedBlock, TracedBranch, in_mode


@dataclass(frozen=True)
class Residual:
    """A block proven residual."""

    branches: tuple[Branch, ...]  # F_0 .. F_k in order; post-activation: exactly one
    post_activation: bool  # relu(x + F(x))
    traced: TracedBlock | None = None  # None: branches that the caller gave
    mixed: bool = False  # does something to its state besides adding to it: a chain of its own

    def branches_for(self, arguments: Arguments) -> tuple[Branch, ...]:
        """The branches of a call with these arguments besides the state."""
        if self.traced is None or arguments == NO_ARGUMENTS:
            return self.branches
        return tuple(
            Branch(TracedBranch(self.traced, i, arguments), branch.module)
            for i, branch in enumerate(self.branches)
        )


@dataclass(frozen=True)
class NotResidual:
    """Why a block is not known to be residual."""

    reason: str  # one line: what is in the way, and what to do
    transition: bool = False  # whether only the shortcut is in the way, which computes something
    num_mixed: int = 0  # branches of it that are residual in part: see model/tracing/segments.py


def _operations_to_output(program: Program) -> set[int]:
    found, left = set[int](), [program.output.index]
    while left:
        i = left.pop()
        if i not in found:
            found.add(i)
            left += program.operations[i].needs
    return found


def _modules_within_branches(program: Program, branches: BlockProgram) -> set[str]:
    """The traced modules that lie within branches as a whole."""
    inside = _operations_of(branches)
    outside = _operations_to_output(program) - inside
    names = {name for i in inside for name in program.operations[i].callers}
    return names - {name for i in outside for name in program.operations[i].callers}


def _operations_of(branches: BlockProgram) -> set[int]:
    plain = [step.program for step in branches.steps if isinstance(step, PlainStep)]
    programs = [*branches.branches, *plain]
    return {i for program in programs for i, _ in program.operations}


Recorder = Callable[[Collection[str]], Program]  # names of modules to keep whole -> the program
Search = type[BranchSearch]


def _with_whole_modules(
    block: nn.Module, search: Search, record: Recorder, program: Program, branches: BlockProgram
) -> tuple[Program, BlockProgram]:
    """The same branches, with modules called as a whole where possible.

    So hooks fire (ZeRO-3 gathers parameters in them), and what a module reads at run time is not fixed.
    """
    whole = _modules_within_branches(program, branches)
    try:
        other = record(whole)
        found = search(other, block).block_program()
    except (Untraceable, NotResidualError):
        return program, branches
    calls = {i for i, op in enumerate(other.operations) if op.kind == "module" and op.target in whole}
    same = found.signature == branches.signature and calls <= _operations_of(found)
    return (other, found) if same else (program, branches)


def _recorded_branches(block: nn.Module, search: Search, record: Recorder) -> tuple[Program, BlockProgram]:
    """The program of the block in its present training mode. Raises NotResidualError or Untraceable."""
    program = record(())
    try:
        branches = search(program, block).block_program()
    except NotResidualError as error:
        error.num_mixed = _num_mixed(program, block)
        raise
    return _with_whole_modules(block, search, record, program, branches)


def _num_mixed(program: Program, block: nn.Module) -> int:
    """How many branches it has in part. Raises NotResidualError if only something besides is in the way."""
    try:
        return len(SegmentSearch(program, block).block_program().branches)
    except NothingResidualError:
        return 0


def _traced_branches(search: Search, block: nn.Module) -> tuple[Program, BlockProgram]:
    return _recorded_branches(block, search, partial(trace, block))


def _first_output(program: Program) -> tuple[Program, tuple[Any, ...] | None]:
    """A program of the state alone, the first of what a tuple holds, and what else is in it."""
    if not isinstance(program.output, tuple | list) or not program.output:
        return program, None
    state, *others = program.output
    indices = {i: program.operations[i] for other in others for i in result_indices(other)}
    for operation in indices.values():
        if operation.kind != "argument":
            raise NotResidualError(
                "it returns more than its state: what else it returns depends on its input"
            )
    arguments = {i: ResultOf(operation.target) for i, operation in indices.items()}
    return replace(program, output=state), tuple(insert_results(others, arguments))


def _taped_branches(
    search: Search, block: nn.Module, x: Tensor, arguments: Arguments
) -> tuple[Program, BlockProgram]:
    others: list[tuple[Any, ...] | None] = []

    def record(names: Collection[str]) -> Program:
        program, rest = _first_output(tape(block, x, arguments, names))
        others.append(rest)
        return program

    program, branches = _recorded_branches(block, search, record)
    return program, replace(branches, others=others[-1])


def _check_hooks(block: nn.Module, program: Program) -> None:
    """Refuse hooks of the modules that branches do not call. (An engine may add some later.)"""
    for name in ["", *(name for operation in program.operations for name in operation.callers)]:
        if any(getattr(block.get_submodule(name), hooks) for hooks in HOOKS):
            raise NotResidualError(
                f"{name or 'it'} has hooks, which its branches would not call; remove them"
            )


def _trace_at_run_time(name: str, search: Search, block: nn.Module) -> BlockProgram:
    """The program for a mode that is new at run time."""
    try:
        return _traced_branches(search, block)[1]
    except (Untraceable, NotResidualError) as error:
        raise RefusedError(name, f"with flags and numbers as they are now: {error}; {ADVICE}") from error


def _tape_at_run_time(
    name: str, search: Search, block: nn.Module, x: Tensor, arguments: Arguments
) -> BlockProgram:
    """The program for a call of a kind that is new at run time."""
    try:
        return _taped_branches(search, block, x, arguments)[1]
    except (Untraceable, NotResidualError) as error:
        raise RefusedError(name, f"called as it is now: {error}; {ADVICE}") from error


@dataclass(frozen=True)
class BlockCall:
    """A real call of a block, for code that cannot be traced."""

    training: bool  # the mode of all its modules
    x: Tensor
    arguments: Arguments


def _trace_both_modes(traced: TracedBlock, search: Search) -> None:
    block = traced.block
    if len(required := required_arguments(block)) > 1:
        raise NotResidualError(
            f"its forward wants {', '.join(required)}; want one tensor, all else with defaults"
        )
    for training in (block.training, not block.training):
        with in_mode(block, training):
            program, traced.programs[traced.mode()] = _traced_branches(search, block)
            _check_hooks(block, program)
    _check_alike(list(traced.programs.values()))


def _tape_calls(traced: TracedBlock, search: Search, calls: Sequence[BlockCall]) -> None:
    block = traced.block
    for call in calls:
        with in_mode(block, call.training):
            program, branches = _taped_branches(search, block, call.x, call.arguments)
            _check_hooks(block, program)
            key = (traced.mode(), call_signature(traced.name, call.x, call.arguments))
            traced.taped[key] = branches
    _check_alike(list(traced.taped.values()))


def _check_alike(programs: Sequence[BlockProgram]) -> None:
    if len({program.signature for program in programs}) > 1:
        raise NotResidualError("it has other branches in training than in evaluation")


def _prove(traced: TracedBlock, search: Search, calls: Sequence[BlockCall]) -> None:
    """Fill in the programs of the block. Raises NotResidualError or Untraceable."""
    try:
        _trace_both_modes(traced, search)
    except (Untraceable, NotResidualError):
        traced.programs.clear()
        traced.trace = None
        if not calls:
            raise
    given = [call for call in calls if traced.trace is None or call.arguments.given(traced.block)]
    _tape_calls(traced, search, given)
    _check_alike([*traced.programs.values(), *traced.taped.values()])


def residual_block(
    block: nn.Module, *, name: str | None = None, calls: Sequence[BlockCall] = (), mixed: bool = False
) -> Residual | NotResidual:
    """Prove that block(x) adds branches to its input, in training and in evaluation mode, or tell why not.

    name: of the block, for errors at run time; its class if None. calls: how the block is called, in either
    mode; with them a block that cannot be traced is recorded as it runs, and may take further arguments and
    return its state as the first of a tuple. mixed: let it do something else to its state, too, before,
    between or after the branches. The block is left as it is. Not detected
    here but when a branch first runs (ValueError): a branch that changes the shape; a module, kept whole
    because it cannot be traced, that writes to its input or to buffers; anything that makes the trace
    compute something else. Not detected at all: random generators of the block's own, files and clocks read
    in forward, and what attributes hold that are neither numbers nor text nor tensors (a dict of settings, a
    function), outside of modules within one branch: it stays as it was when traced.
    """
    name = name or type(block).__name__
    search = SegmentSearch if mixed else BranchSearch
    trace_now, tape_now = (partial(f, name, search) for f in (_trace_at_run_time, _tape_at_run_time))
    traced = TracedBlock(block, name, trace_now, tape_now)
    try:
        _prove(traced, search, calls)
    except (Untraceable, NotResidualError) as error:
        known = error if isinstance(error, NotResidualError) else NotResidualError("")
        reason = str(error) if known.transition else f"{error}; {ADVICE}"
        return NotResidual(reason, known.transition, known.num_mixed)
    except RefusedError as error:
        return NotResidual(f"{error.reason}; {ADVICE}")
    program = next(iter([*traced.programs.values(), *traced.taped.values()]))
    functions = (TracedBranch(traced, i) for i in range(len(program.branches)))
    branches = tuple(Branch(function, block) for function in functions)
    return Residual(branches, program.post_activation, traced, mixed)
