"""A stage of residual branches F_0 .. F_{n-1}, its activations recomputed from its output and never stored.

One recurrence with one coefficient beta, 0 <= beta <= 1, takes the stage input x_{-1} = x_0 to the output y:

    z_i = (1 - beta) x_i + beta x_{i-1} + psi(F_i(x_i)),   x_{i+1} = phi(z_i)
    y = (x_n + beta x_{n-1}) / (1 + beta)

Pre-activation networks (Swin, ViT): phi and psi are the identity. Post-activation networks (ResNet, R(2+1)D),
where a ReLU follows the addition: phi is a leaky ReLU of negative slope beta, psi one of slope 1 - beta. So
beta = 0 is the original network, exactly, and beta = 1 is Re2TAL (C. Zhao et al., CVPR 2023): each skip
connection jumps one more branch. In between lies the path of Dr2Net (C. Zhao et al., CVPR 2024). The inverse:

    x_{i-1} = (z_i - (1 - beta) x_i - psi(F_i(x_i))) / beta,   z_i = phi^-1(x_{i+1})

The backward pass keeps two states and runs one branch at a time. We depart from both papers in this: one
coefficient for both families; states in float32 whatever the dtype of the branches; x_n and y are kept
instead of x_n and x_{n-1}, because what follows the stage keeps y anyway; below `smallest_beta`
(model/inverse_accuracy.py), where the inverse would lose too many digits, the same function keeps the input
of every branch (checkpointing). At beta = 1 the states can be kept on a fixed-point grid
(`fixed_point_states`, model/grid.py): every sum and difference is then exact, the inverse is bitwise equal
whatever the dtype of the branches, and so are the gradients, where a ReLU at a rounding edge would otherwise
flip. Where states outgrow the grid of the stage input, the stage can run again on a wider one (`widen_grid`).

`leapfrog` multiplies every branch by 1 + beta. At beta = 1 that is the leapfrog scheme for dx/dt = F(x), of
which a residual network is Euler's; without it, as in Re2TAL, a branch adds 1 / (1 + beta) of what it adds in
the pretrained network. With it, branches that do not depend on x add up to the same output at every beta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .grid import Grid, largest_of
from .inverse_accuracy import smallest_beta
from .recompute import (
    CallState,
    RngState,
    autocast_dtype,
    frozen_statistics,
    graph_handle,
    has_trainable_parameters,
    recorded_call,
)
from .recurrence import Recurrence
from .slices import sliced_backward, sliced_increment, slices_of


@dataclass(frozen=True)
class Branch:
    """One residual branch: a function that keeps the shape, and the module whose parameters it uses."""

    function: Callable[[Tensor], Tensor]
    module: nn.Module

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the first floating-point parameter; None if there is none."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), None)

    def __call__(self, x: Tensor) -> Tensor:
        """F(x), computed in the dtype of the parameters."""
        return self.function(x if self.dtype is None else x.to(self.dtype))


def branch_dtype(branches: Sequence[Branch], x: Tensor) -> torch.dtype:
    """The least precise dtype in which the branches will compute: autocast's, or that of their parameters."""
    if (dtype := autocast_dtype(x.device.type)) is not None:
        return dtype
    dtypes = [branch.dtype for branch in branches if branch.dtype is not None]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=x.dtype)


def _can_invert(recurrence: Recurrence, branches: Sequence[Branch], x: Tensor) -> bool:
    """Whether the inverse is accurate enough in the dtype that the branches compute in."""
    dtype, post_activation = branch_dtype(branches, x), recurrence.post_activation
    return recurrence.beta >= smallest_beta(len(branches), dtype, post_activation=post_activation)


@dataclass(frozen=True)
class _Forward:
    """What a forward pass of a stage made."""

    grid: Grid | None
    states: list[Tensor]  # the last two or more of x_{-1} .. x_n
    calls: list[CallState]  # of each branch, if they were recorded
    largest: Tensor | None  # value in all states, by sample: (n, 1, ...); None if it was not measured


def _rounded(x: Tensor, grid: Grid | None) -> Tensor:
    return x if grid is None else grid.round(x)


@dataclass(frozen=True)
class _Stage:
    """The branches of one stage, and how their states are computed and kept."""

    recurrence: Recurrence
    branches: Sequence[Branch]
    invert: bool
    fixed_point_states: bool
    widen_grid: bool
    slice_bytes: int | None
    on_reconstruction_error: Callable[[Tensor], None] | None

    def first_trainable_branch(self) -> int:
        return next(i for i, branch in enumerate(self.branches) if has_trainable_parameters(branch.module))

    def grid(self, x: Tensor) -> Grid | None:
        return Grid.of(x) if self.fixed_point_states else None

    def increment(self, branch: Branch, x: Tensor) -> Tensor:
        """What the branch adds to the state x; without a graph it may run on slices."""
        if not torch.is_grad_enabled():
            slices = slices_of(branch.function, x, branch_dtype([branch], x), self.slice_bytes)
            if slices is not None:
                return sliced_increment(slices, self.recurrence.increment, x)
        return self.recurrence.increment(branch, x)

    def branch_backward(
        self, branch: Branch, call: CallState, x: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run the branch again at x, with a graph, and back-propagate: its increment, the gradient for x."""
        dtype, increment_of = call.autocast_dtype or branch.dtype or x.dtype, self.recurrence.increment
        slices = slices_of(branch.function, x, dtype, self.slice_bytes)
        if slices is not None:
            return sliced_backward(slices, branch.module, increment_of, call, x, gradient)
        x = x.detach().requires_grad_()
        with call.replay(branch.module):
            increment = increment_of(branch, x)
        if increment.requires_grad:
            torch.autograd.backward(increment, gradient)
        return increment.detach(), x.grad

    def run(self, x: Tensor) -> Tensor:
        """The stage output, under whatever autograd does."""
        return self.recurrence.output(*self.forward(x, record=False).states)

    def forward(self, x: Tensor, *, record: bool) -> _Forward:
        """The states for x, on a grid that they do not outgrow; record: for a backward pass of ours."""
        if (grid := self.grid(x)) is None or not self.widen_grid:
            return self._forward_on(grid, x, record=record)
        before = RngState.capture(x.device)
        done = self._forward_on(grid, x, record=record, measure=True)
        assert done.largest is not None
        if (wider := grid.widened(done.largest)) is None:
            return done
        del done  # before the states of the second pass are made
        with before.replay(), ExitStack() as statistics:
            for branch in self.branches:
                statistics.enter_context(frozen_statistics(branch.module))
            return self._forward_on(wider, x, record=record)

    def _forward_on(self, grid: Grid | None, x: Tensor, *, record: bool, measure: bool = False) -> _Forward:
        keep_all = record and not self.invert
        states, calls = [_rounded(x, grid)] * 2, list[CallState]()  # x_{-1}, x_0
        largest = largest_of(x) if measure else None
        for branch in self.branches:
            if record:
                increment, call = recorded_call(partial(self.increment, branch), states[-1])
                calls.append(call)
            else:
                increment = self.increment(branch, states[-1])
            states.append(self.recurrence.forward_step(states[-2], states[-1], _rounded(increment, grid)))
            if not keep_all:
                del states[0]
            if largest is not None:
                largest = torch.maximum(largest, largest_of(states[-1]))
        return _Forward(grid, states, calls, largest)


class _Reversible(torch.autograd.Function):
    """Keeps (x_n, y) if `stage.invert`, else x_0 .. x_n. Parameters are no inputs: see model/recompute.py."""

    @staticmethod
    def forward(ctx: Any, stage: _Stage, x: Tensor, _: Tensor) -> Tensor:
        done = stage.forward(x, record=True)
        output = stage.recurrence.output(*done.states[-2:])
        ctx.stage, ctx.calls, ctx.grid = stage, done.calls, done.grid
        ctx.save_for_backward(*((done.states[-1], output) if stage.invert else done.states[1:]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        first_branch = 0 if ctx.needs_input_grad[1] else ctx.stage.first_trainable_branch()
        backward_pass = _BackwardPass(ctx.stage, ctx.calls, ctx.grid, ctx.saved_tensors)
        return None, backward_pass.run(gradient, first_branch), None


@dataclass(frozen=True)
class _BackwardPass:
    """The backward pass of a stage, from what its forward pass kept."""

    stage: _Stage
    calls: list[CallState]
    grid: Grid | None
    saved: Sequence[Tensor]  # (x_n, y) if stage.invert, else x_0 .. x_n

    def run(self, gradient: Tensor, first_branch: int) -> Tensor:
        """From the last branch down to `first_branch`; returns the gradient for the stage input."""
        recurrence, beta = self.stage.recurrence, self.stage.recurrence.beta
        following, current = self._last_states()
        d_following, d_current = gradient / (1 + beta), gradient * (beta / (1 + beta))
        for i in reversed(range(first_branch, len(self.stage.branches))):
            d_z = recurrence.activate_backward(following, d_following)
            increment, d_branch = self.stage.branch_backward(
                self.stage.branches[i], self.calls[i], current, d_z
            )
            # In place: d_z and d_current are this pass's own, and a tensor less at the peak is a state less.
            d_following, d_current = d_current.add_((1 - beta) * d_z), d_z.mul_(beta)
            if i == 0:  # x_{-1} is x_0: summed in the order of plain autograd
                d_following.add_(d_current)
                d_current.zero_()
            if d_branch is not None:
                d_following.add_(d_branch)
            del d_z, d_branch
            following, current = current, self._previous_state(i, current, following, increment)
        if self.stage.invert and first_branch == 0 and self.stage.on_reconstruction_error is not None:
            # Both are the stage input now, but `current` went through one more branch.
            difference = torch.linalg.vector_norm(current - following)
            error = difference / torch.linalg.vector_norm(following)
            self.stage.on_reconstruction_error(torch.where(difference == 0, 0.0, error))  # of zeros, too
        return d_following + d_current

    def _last_states(self) -> tuple[Tensor, Tensor]:
        """x_n and x_{n-1}."""
        if not self.stage.invert:
            return self.saved[-1], self.saved[-2]
        last, output = self.saved
        return last, self.stage.recurrence.previous_state(output, last)

    def _previous_state(self, i: int, current: Tensor, following: Tensor, increment: Tensor) -> Tensor:
        """x_{i-1} from x_i, x_{i+1} and the increment of branch i."""
        if not self.stage.invert:
            return self.saved[max(i - 1, 0)]
        return self.stage.recurrence.inverse_step(current, following, _rounded(increment, self.grid))


def run_stage(
    branches: Sequence[Branch],
    x: Tensor,
    *,
    beta: float,
    post_activation: bool = False,
    leapfrog: bool = False,
    invert: bool | None = None,
    fixed_point_states: bool = False,
    widen_grid: bool = False,
    store_activations: bool = False,
    slice_bytes: int | None = None,
    on_reconstruction_error: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The output of the recurrence; x: (n, D, ...). Returns the same shape, in float32 (float64 if x is).

    leapfrog: branches count 1 + beta times.
    invert: True recomputes the states by the inverse (two are kept), False keeps one per branch, None
        inverts if beta >= smallest_beta.
    fixed_point_states: at beta = 1 states and branch outputs are rounded to a grid of 20 bits below the
        largest input of each sample (model/grid.py): the inverse is bitwise equal. Ignored at other betas.
    widen_grid: a stage whose states outgrow that eightfold runs again, on a grid of 22 bits below the largest
        state; to know, the host waits for the device once. Else their sums are rounded, as without a grid.
    store_activations: leave all activations to autograd, for a stage within a module that is recomputed as a
        whole; nothing is inverted, and `invert` is ignored. The output is the same.
    slice_bytes: a branch that can, and would take more bytes, runs on slices (model/slices.py). None: none.
    on_reconstruction_error: called after each inverted backward with the relative error of the reconstructed
        stage input: a scalar on the device of x (reading it waits for the device).
    Raises ValueError if beta is outside [0, 1], or `invert` is True at beta = 0.
    """
    recurrence = Recurrence(beta, post_activation, leapfrog)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not branches:
        return x
    fixed_point_states = fixed_point_states and beta == 1
    if invert is None:
        invert = _can_invert(recurrence, branches, x)
    if invert and beta == 0:
        raise ValueError("beta: got 0 with invert=True, want beta > 0 (the original network has no inverse)")
    stage = _Stage(
        recurrence, branches, invert, fixed_point_states, widen_grid, slice_bytes, on_reconstruction_error
    )
    trainable = any(has_trainable_parameters(branch.module) for branch in branches)
    if store_activations or not torch.is_grad_enabled() or not (x.requires_grad or trainable):
        return stage.run(x)
    y: Tensor = _Reversible.apply(stage, x, graph_handle(x.device, trainable))  # type: ignore[no-untyped-call]
    return y
