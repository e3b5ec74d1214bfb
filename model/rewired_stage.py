"""The rewired form of a stage: its residual blocks as recurrences, its shape-changing blocks in between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from .prepared import ResidualBlock
from .recompute import recompute
from .recurrence import Recurrence
from .reversible import Branch, run_stage


@dataclass(frozen=True)
class Rewired:
    """What became of one module."""

    name: str  # as in the state_dict
    # "reversible", "transition", "recomputed" (all of it, as the stem), "plain" (as asked) or "untouched"
    kind: str
    num_branches: int
    reason: str
    # Bytes kept for the backward pass by one call on the example: before, and now. A chain's are its last
    # block's. None where no example ran.
    bytes_before: int | None = None
    bytes_after: int | None = None


@dataclass(frozen=True)
class RecurrenceOptions:
    """How the recurrences of a rewired network run; see `model.rewire.rewire`."""

    beta: float
    fixed_point_states: bool
    leapfrog: bool
    slice_bytes: int | None


class RewiredStage(nn.Sequential):
    """The blocks of one stage: runs of shape-keeping blocks as one recurrence each, transitions in between.

    `stored` names the transitions, and the runs of blocks, that keep their activations. `invert`,
    `fixed_point_states`, `leapfrog` and `slice_bytes` are those of `run_stage`. `reconstruction_error` holds,
    after a backward pass that inverted, the relative error of the last reconstructed run (a scalar tensor),
    else None.
    """

    def __init__(
        self,
        blocks: OrderedDict[str, nn.Module],
        options: RecurrenceOptions,
        *,
        stored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(blocks)
        self.beta = options.beta
        self.fixed_point_states = options.fixed_point_states
        self.leapfrog = options.leapfrog
        self.slice_bytes = options.slice_bytes
        self.stored = stored
        self.invert: bool | None = None
        self.reconstruction_error: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, D, ...). Returns the stage output in float32 (float64 if x is)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for names in _runs(self):
            blocks = [cast(ResidualBlock, self.get_submodule(name)) for name in names]
            if changes_shape(blocks[0]):
                x = self._transition(blocks[0], x, names[0] in self.stored)
            else:
                x = self._recurrence(blocks, x, self.stored.issuperset(names))
        return x

    def _recurrence(self, blocks: Sequence[ResidualBlock], x: Tensor, stored: bool) -> Tensor:
        return run_stage(
            branches_of(blocks),
            x,
            beta=self.beta,
            post_activation=blocks[0].post_activation,
            leapfrog=self.leapfrog,
            invert=self.invert,
            fixed_point_states=self.fixed_point_states,
            store_activations=stored,
            slice_bytes=self.slice_bytes,
            on_reconstruction_error=self._store_error,
        )

    def _transition(self, block: ResidualBlock, x: Tensor, stored: bool) -> Tensor:
        function = partial(_residual, Recurrence(self.beta, block.post_activation), block)
        return function(x) if stored else recompute(function, block, x)

    def _store_error(self, error: Tensor) -> None:
        self.reconstruction_error = error


def named_blocks(stage: nn.Module) -> Iterator[tuple[str, ResidualBlock]]:
    """The children of a stage, which are residual blocks, of whatever class."""
    for name, block in stage.named_children():
        yield name, cast(ResidualBlock, block)


def branches_of(blocks: Sequence[nn.Module]) -> list[Branch]:
    """The branches of residual blocks, in order, each with the block that owns its parameters."""
    return [Branch(function, block) for block in blocks for function in cast(ResidualBlock, block).branches]


def changes_shape(block: ResidualBlock) -> bool:
    """Whether the block is a transition: its shortcut computes something."""
    return block.downsample is not None


def _runs(stage: nn.Module) -> list[list[str]]:
    """Names: each transition alone, and the longest runs of blocks between them."""
    runs: list[list[str]] = []
    alone = True
    for name, block in named_blocks(stage):
        if alone or changes_shape(block):
            runs.append([])
        runs[-1].append(name)
        alone = changes_shape(block)
    return runs


def _residual(recurrence: Recurrence, block: ResidualBlock, x: Tensor) -> Tensor:
    """The transition: phi(shortcut(x) + psi(F(x))) in the dtype of x."""
    (branch,) = branches_of([block])
    assert block.downsample is not None
    shortcut = Branch(block.downsample, block)
    return recurrence.activate(recurrence.branch_output(branch, x) + shortcut(x).to(x.dtype))
