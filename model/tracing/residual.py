"""Proves from its trace that a block of any source is residual, or tells why not.

Residual: s_0 is the block's one input, s_{j+1} = s_j + F_j(s_j), where F_j takes nothing but s_j, parameters,
buffers and constants; the output is s_k, or relu(s_0 + F_0(s_0)). The branches then run the block's own
modules; nothing is copied and nothing registered.

A trace cannot see everything (model/tracing/graph.py says what), so the first run of a block in each training
mode also runs the block itself, compares, and raises ValueError where they differ. Every run checks that
the branch keeps the shape and leaves its input alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from ..reversible import Branch
from .branches import BranchSearch, NotResidualError
from .graph import HOOKS, Untraceable, required_arguments, trace
from .operations import Program
from .traced_block import ADVICE, BlockProgram, TracedBlock, TracedBranch, in_mode, training_flags


@dataclass(frozen=True)
class Residual:
    """A block proven residual."""

    branches: tuple[Branch, ...]  # F_0 .. F_k in order; post-activation: exactly one
    post_activation: bool  # relu(x + F(x))


@dataclass(frozen=True)
class NotResidual:
    """Why a block is not known to be residual."""

    reason: str  # one line: what is in the way, and what to do
    transition: bool = False  # whether only the shortcut is in the way, which computes something


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
    return {i for branch in branches.branches for i, _ in branch.operations}


def _with_whole_modules(
    block: nn.Module, program: Program, branches: BlockProgram
) -> tuple[Program, BlockProgram]:
    """The same branches, with modules called as a whole where possible.

    So hooks fire (ZeRO-3 gathers parameters in them), and what a module reads at run time is not fixed.
    """
    whole = _modules_within_branches(program, branches)
    try:
        other = trace(block, whole)
        found = BranchSearch(other, block).block_program()
    except (Untraceable, NotResidualError):
        return program, branches
    calls = {i for i, op in enumerate(other.operations) if op.kind == "module" and op.target in whole}
    same = found.signature == branches.signature and calls <= _operations_of(found)
    return (other, found) if same else (program, branches)


def _traced_branches(block: nn.Module) -> tuple[Program, BlockProgram]:
    """The program of the block in its present training mode. Raises NotResidualError or Untraceable."""
    program = trace(block)
    return _with_whole_modules(block, program, BranchSearch(program, block).block_program())


def _check_hooks(block: nn.Module, program: Program) -> None:
    """Refuse hooks of the modules that branches do not call. (An engine may add some later.)"""
    for name in ["", *(name for operation in program.operations for name in operation.callers)]:
        if any(getattr(block.get_submodule(name), hooks) for hooks in HOOKS):
            raise NotResidualError(
                f"{name or 'it'} has hooks, which its branches would not call; remove them"
            )


def _trace_at_run_time(name: str, block: nn.Module) -> BlockProgram:
    """The program for a combination of training flags that is new at run time."""
    try:
        return _traced_branches(block)[1]
    except (Untraceable, NotResidualError) as error:
        raise ValueError(f"{name}: with training flags as they are now: {error}; {ADVICE}") from error


def residual_block(block: nn.Module, *, name: str | None = None) -> Residual | NotResidual:
    """Prove that block(x) adds branches to its input, in training and in evaluation mode, or tell why not.

    name: of the block, for errors at run time; its class if None. The block is left as it is. Not detected
    here but when a branch first runs (ValueError): a branch that changes the shape; a module, kept whole
    because it cannot be traced, that writes to its input or to buffers; anything that makes the trace
    compute something else. Not detected at all: random generators of the block's own, files and clocks read
    in forward, and numbers read from attributes outside of modules within one branch, which stay as they were
    when traced.
    """
    name = name or type(block).__name__
    traced = TracedBlock(block, name, partial(_trace_at_run_time, name))
    try:
        if len(required := required_arguments(block)) > 1:
            raise NotResidualError(
                f"its forward wants {', '.join(required)}; want one tensor, all else with defaults"
            )
        for training in (block.training, not block.training):
            with in_mode(block, training):
                program, traced.programs[training_flags(block)] = _traced_branches(block)
                _check_hooks(block, program)
        branches, *others = traced.programs.values()
        if any(other.signature != branches.signature for other in others):
            raise NotResidualError("it has other branches in training than in evaluation")
    except (Untraceable, NotResidualError) as error:
        transition = isinstance(error, NotResidualError) and error.transition
        return NotResidual(str(error) if transition else f"{error}; {ADVICE}", transition)
    functions = (TracedBranch(traced, i) for i in range(len(branches.branches)))
    return Residual(tuple(Branch(function, block) for function in functions), branches.post_activation)
