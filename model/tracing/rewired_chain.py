"""A chain of blocks as one recurrence: each block remembers how it was called, the last one runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..recompute import RngState, frozen_statistics, recompute_call
from ..recurrence import Recurrence
from ..reversible import Branch, run_stage
from .arguments import Arguments, split_state
from .block_program import BranchStep, PlainStep
from .pending import Pending
from .residual import Residual
from .traced_block import TracedBlock, has_values

# block -> its residual branches, in order, if its forward is x + F_0(x), then + F_1, ...; None: trace it
BranchesOfBlock = Callable[[nn.Module], "Sequence[Callable[[Tensor], Tensor]] | Residual | None"]


@dataclass(eq=False)
class RewiredChain:
    """One recurrence over a chain of blocks.

    `beta`, `fixed_point_states`, `leapfrog`, `invert` and `reconstruction_error` are as in RewiredStage;
    `store_activations` is that of `run_stage`.
    """

    names: tuple[str, ...]
    blocks: list[nn.Module]
    traced: dict[str, Residual]  # by name; the caller's `branches` give those of the other blocks
    branches: BranchesOfBlock | None
    post_activation: bool
    beta: float
    fixed_point_states: bool
    leapfrog: bool
    invert: bool | None = None
    store_activations: bool = False
    reconstruction_error: Tensor | None = None
    compared: bool = field(default=False)
    # Of calls with fake tensors, which have no Pending: those of the blocks so far
    fake_calls: tuple[Arguments, ...] = ()

    def run(self, x: Tensor, calls: Sequence[Arguments]) -> Tensor:
        """The chain's output for the first block's input, in the dtype of x: (n, ...)."""
        if self.beta == 0 and any(r.traced is not None and r.traced.inexact for r in self.traced.values()):
            return self._run_originals(x, calls)
        first = self.traced.get(self.names[0])
        if first is not None and first.mixed:
            assert first.traced is not None
            return self._run_mixed(first.traced, x, calls[0])
        branches = [b for i, arguments in enumerate(calls) for b in self._branches_of(i, arguments)]
        if not self.compared and has_values(x):
            self._compare(x, calls)
            self.compared = True
        return self._run_branches(branches, x)

    def _run_branches(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        y = run_stage(
            branches,
            x,
            beta=self.beta,
            post_activation=self.post_activation,
            leapfrog=self.leapfrog,
            invert=self.invert,
            fixed_point_states=self.fixed_point_states,
            widen_grid=has_values(x),  # nobody knows how much their states grow
            store_activations=self.store_activations,
            on_reconstruction_error=self._store_error,
        )
        return y.to(x.dtype)

    def _run_mixed(self, traced: TracedBlock, x: Tensor, arguments: Arguments) -> Tensor:
        """A mixed block: a recurrence of each run of branches; what is between them is recomputed."""
        program = traced.program(x, arguments)
        traced.check(program, x, arguments)

        def plain(step: PlainStep, inputs: list[Tensor]) -> Tensor:
            function = partial(step.run, traced.block, arguments.tensors)
            kept = self.store_activations or step.keeps_nothing
            result: Tensor = function(*inputs) if kept else self._recomputed(0, function, *inputs)
            return result

        def added(step: BranchStep, state: Tensor) -> Tensor:
            functions = (
                partial(traced.run_branch, branch, i, arguments=arguments)
                for i, branch in enumerate(step.branches)
            )
            return self._run_branches([Branch(function, traced.block) for function in functions], state)

        return program.run_steps(x, plain, added)

    def _run_originals(self, x: Tensor, calls: Sequence[Arguments]) -> Tensor:
        """At beta 0, blocks whose branches add up in another order: their own forwards, recomputed."""
        for i, arguments in enumerate(calls):
            if self.names[i] not in self.traced:
                x = self._run_branches(self._branches_of(i, arguments), x)
                continue
            forward = partial(_original, self.blocks[i], arguments)
            x = forward(x) if self.store_activations else self._recomputed(i, forward, x)
        return x

    def _recomputed(self, i: int, function: Callable[..., Any], *inputs: Tensor) -> Any:
        return recompute_call(self.names[i], self.blocks[i], function, *inputs)

    def output(self, i: int, state: Tensor, x: Tensor, arguments: Arguments) -> Any:
        """What block i returns, with this state; x: a tensor of its input's kind."""
        residual = self.traced.get(self.names[i])
        if residual is None or residual.traced is None:
            return state
        dtype = None if residual.mixed else residual.branches[0].dtype
        program = residual.traced.program(x if dtype is None else x.to(dtype), arguments)
        return program.output(state, arguments.tensors)

    def _branches_of(self, i: int, arguments: Arguments) -> Sequence[Branch]:
        name, block = self.names[i], self.blocks[i]
        if name in self.traced:
            return self.traced[name].branches_for(arguments)
        assert self.branches is not None
        residual = as_residual(self.branches(block), block)  # asked anew: a copy's functions are its own
        assert residual is not None
        return residual.branches_for(arguments)

    def _compare(self, x: Tensor, calls: Sequence[Arguments]) -> None:
        """Compare the caller's branches with their blocks, once; traced blocks do so themselves."""
        rng = RngState.capture(x.device)
        for i, (name, block) in enumerate(zip(self.names, self.blocks, strict=True)):
            if name in self.traced:
                continue
            if given := calls[i].given(block):
                raise ValueError(
                    f"rewire: {name} is called with {', '.join(given)} besides its input; what branches= "
                    "gave takes its input alone: leave this argument out, or the block plain"
                )
            with torch.no_grad(), frozen_statistics(block), rng.replay():
                expected = type(block).forward(block, x.clone())
            with torch.no_grad(), frozen_statistics(block), rng.replay():
                found = self._sum_of_branches(i, x)
            check_equal(name, found, expected)

    def _sum_of_branches(self, i: int, x: Tensor) -> Tensor:
        """The block's output at beta 0, where the recurrence is the original network."""
        recurrence = Recurrence(0.0, self.post_activation)
        for branch in self._branches_of(i, Arguments()):
            x = recurrence.forward_step(x, x, recurrence.branch_output(branch, x))
        return x

    def _store_error(self, error: Tensor) -> None:
        self.reconstruction_error = error


def _original(block: nn.Module, arguments: Arguments, x: Tensor) -> Any:
    """The state that the block's own forward returns; x is left as it is."""
    returned = arguments.call(type(block).forward, block, x.clone())
    return returned[0] if isinstance(returned, tuple | list) else returned


@dataclass(eq=False)
class BlockForward:
    """The forward of one block of a chain."""

    chain: RewiredChain
    i: int  # its place in the chain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns: a Pending in place of its state if it is not the last of the chain."""
        chain, i, name = self.chain, self.i, self.chain.names[self.i]
        state, arguments = split_state(name, chain.blocks[i], args, kwargs)
        arguments.check(name, chain.blocks[i])
        calls = (*self._calls_so_far(state), arguments)
        x = state.input() if isinstance(state, Pending) else state
        is_last = i == len(chain.blocks) - 1
        if type(x) not in (Tensor, nn.Parameter):  # a fake tensor, for an estimate
            chain.fake_calls = () if is_last else calls
        if is_last:
            return chain.output(i, chain.run(x, calls), x, arguments)
        placeholder = x if chain.fake_calls else Pending.of(state, chain, calls, name)
        return chain.output(i, placeholder, x, arguments)

    def _calls_so_far(self, state: Tensor) -> tuple[Arguments, ...]:
        if self.i == 0:
            if isinstance(state, Pending):
                state + 0  # the error of another chain's output
            return ()
        if not isinstance(state, Pending) and len(self.chain.fake_calls) == self.i:
            return self.chain.fake_calls
        if not isinstance(state, Pending) or state.chain is not self.chain or len(state.calls) != self.i:
            before, name = self.chain.names[self.i - 1], self.chain.names[self.i]
            raise ValueError(
                f"rewire: {name} is called with something else than the output of {before}, which it was "
                "when the network was rewired; rewire again with example= as the network is called now"
            )
        return state.calls


def check_equal(name: str, found: Tensor, expected: object) -> None:
    """ValueError unless the sum of a block's branches is the block's output, but for roundings."""
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise ValueError(f"rewire: {name}: what branches= gave does not add up to the shape of its output")
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    if error > torch.finfo(expected.dtype).eps ** 0.5:  # a wrong branch is off by far more than roundings
        raise ValueError(f"rewire: {name}: what branches= gave differs from its output by {error:.1g} of it")


def as_residual(
    branches: Sequence[Callable[[Tensor], Tensor]] | Residual | None, block: nn.Module
) -> Residual | None:
    """What the caller's `branches` returned for the block."""
    if branches is None or isinstance(branches, Residual):
        return branches
    return Residual(tuple(Branch(function, block) for function in branches), post_activation=False)
