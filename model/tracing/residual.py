"""Prove from its trace that a block nobody prepared is residual, or say why not.

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
from .branches import Refused, Sums
from .graph import HOOKS, Untraceable, required, trace
from .operations import Program
from .traced_block import WAY_OUT, Plan, TracedBlock, TracedBranch, in_mode, mode_of


@dataclass(frozen=True)
class Residual:
    """A block proven residual."""

    branches: tuple[Branch, ...]  # F_0 .. F_k in order; post-activation: exactly one
    post_activation: bool  # relu(x + F(x))


@dataclass(frozen=True)
class Refusal:
    """Why a block is not known to be residual."""

    reason: str  # one line: what is in the way, and the way out
    transition: bool = False  # a sum like a residual one, but with a shortcut that computes something


def _steps_to_output(program: Program) -> set[int]:
    found, left = set[int](), [program.output.index]
    while left:
        i = left.pop()
        if i not in found:
            found.add(i)
            left += program.steps[i].needs
    return found


def _closable(program: Program, plan: Plan) -> set[str]:
    """The traced modules that lie within branches as a whole."""
    inside = {i for piece in plan.pieces for i, _ in piece.steps}
    outside = _steps_to_output(program) - inside
    names = {name for i in inside for name in program.steps[i].inside}
    return names - {name for i in outside for name in program.steps[i].inside}


def _coarse(block: nn.Module, program: Program, plan: Plan) -> tuple[Program, Plan]:
    """The same branches with modules called whole where possible.

    So hooks fire (ZeRO-3 gathers parameters in them), and what a module reads at run time is not fixed.
    """
    closed = _closable(program, plan)
    try:
        other = trace(block, closed)
        found = Sums(other, block).plan()
    except (Untraceable, Refused):
        return program, plan
    live = {i for piece in found.pieces for i, _ in piece.steps}
    calls = {i for i, step in enumerate(other.steps) if step.kind == "module" and step.target in closed}
    return (other, found) if found.shape == plan.shape and calls <= live else (program, plan)


def _plan(block: nn.Module) -> tuple[Program, Plan]:
    """What the block does in its present training mode. Raises Refused or Untraceable."""
    program = trace(block)
    return _coarse(block, program, Sums(program, block).plan())


def _check_hooks(block: nn.Module, program: Program) -> None:
    """Of the modules that branches do not call; later ones, an engine's, are its own affair."""
    for name in ["", *(name for step in program.steps for name in step.inside)]:
        if any(getattr(block.get_submodule(name), hooks) for hooks in HOOKS):
            raise Refused(f"{name or 'it'} has hooks, which its branches would not call; remove them")


def _plan_or_error(name: str, block: nn.Module) -> Plan:
    """For a combination of training flags that is met at run time."""
    try:
        return _plan(block)[1]
    except (Untraceable, Refused) as error:
        raise ValueError(f"{name}: with training flags as they are now: {error}; {WAY_OUT}") from error


def residual_block(block: nn.Module, *, name: str | None = None) -> Residual | Refusal:
    """Prove that block(x) adds branches to its input, in training and in evaluation mode, or say why not.

    name: of the block, for errors at run time; its class if None. The block is left as it is. Not detected
    here but when a branch first runs (ValueError): a branch that changes the shape; a module, kept whole
    because it cannot be traced, that writes to its input or to buffers; anything that makes the trace
    compute something else. Not detected at all: generators of one's own, files and clocks read in forward,
    and numbers read from attributes of code that is not in a module within one branch, which stay as they
    were when traced.
    """
    name = name or type(block).__name__
    traced = TracedBlock(block, name, partial(_plan_or_error, name))
    try:
        if len(wanted := required(block)) > 1:
            raise Refused(f"its forward wants {', '.join(wanted)}; want one tensor, all else with defaults")
        for training in (block.training, not block.training):
            with in_mode(block, training):
                program, traced.plans[mode_of(block)] = _plan(block)
                _check_hooks(block, program)
        plan, *others = traced.plans.values()
        if any(other.shape != plan.shape for other in others):
            raise Refused("it has other branches in training than in evaluation")
    except (Untraceable, Refused) as error:
        transition = isinstance(error, Refused) and error.transition
        return Refusal(str(error) if transition else f"{error}; {WAY_OUT}", transition)
    branches = tuple(Branch(TracedBranch(traced, i), block) for i in range(len(plan.pieces)))
    return Residual(branches, plan.post_activation)
