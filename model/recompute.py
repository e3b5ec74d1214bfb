"""Runs a function again in the backward pass, exactly as it ran in the forward pass.

T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Unlike `torch.utils.checkpoint`, the
backward is nested: it runs the function on a detached input and calls `.backward` on the result. So parameter
gradients accumulate in whatever tensors the parameters are at that moment (aliases that
`torch.func.functional_call` made, shards that ZeRO-3 gathered), and no parameter is an input of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class RngState:
    """The global random number generators of the CPU and of one device at one moment.

    Takes 5,056 bytes for the CPU and 16 for a GPU.
    """

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None  # None if the device is the CPU

    @staticmethod
    def capture(device: torch.device) -> RngState:
        """The state as it is now; `device` is where the tensors of the computation live."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return RngState(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set the global generators to this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, random numbers come as after `capture`; afterwards the generators are as before."""
        before = RngState.capture(self.device)
        self.restore()
        try:
            yield
        finally:
            before.restore()

    def is_current(self) -> bool:
        """Whether no random number was drawn since `capture`."""
        if not torch.equal(self.cpu, torch.get_rng_state()):
            return False
        return self.cuda is None or torch.equal(self.cuda, torch.cuda.get_rng_state(self.device))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode normalise with the batch, but keep their running statistics.

    For running a module a second time on the same input; batch norms in evaluation mode are not touched.
    """
    norms = [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False  # in training mode _BatchNorm then passes no running statistics
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def autocast_dtype(kind: str) -> torch.dtype | None:
    """What autocast computes in on a kind of device ("cpu", "cuda"); None: it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast_without_cache(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to this dtype; None: off. Casted weights in its cache would carry the graph, or the lack of
    one, of whoever used them first."""
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


@dataclass(frozen=True)
class CallState:
    """What a call depends on besides input and parameters: autocast, the generators if it drew numbers."""

    device_type: str
    autocast_dtype: torch.dtype | None  # None if autocast was off
    rng: RngState | None  # None if the call drew no random number

    @staticmethod
    def after(before: RngState) -> CallState:
        """Of the call that has just ended; before: the generators as they were when it began."""
        kind = before.device.type
        return CallState(kind, autocast_dtype(kind), None if before.is_current() else before)

    @contextmanager
    def replay(self, module: nn.Module) -> Iterator[None]:
        """Inside, `module` computes what it computed in that call, with a graph, and has no side effect."""
        autocast = autocast_without_cache(self.device_type, self.autocast_dtype)
        with torch.enable_grad(), autocast, self._random(), frozen_statistics(module):
            yield

    def _random(self) -> AbstractContextManager[None]:
        return nullcontext() if self.rng is None else self.rng.replay()


def recorded_call(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, CallState]:
    """function(x), and the state from which the very same call can be replayed."""
    rng = RngState.capture(x.device)
    y = function(x)
    return y, CallState.after(rng)


def has_trainable_parameters(module: nn.Module) -> bool:
    """Whether any parameter of the module requires grad."""
    return any(parameter.requires_grad for parameter in module.parameters())


def graph_handle(device: torch.device, requires_grad: bool) -> Tensor:
    """An empty tensor that requires grad if asked to: it keeps an autograd function in the graph.

    For functions that may have no input that requires grad, and yet parameters that do.
    """
    return torch.empty(0, device=device, requires_grad=requires_grad)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, _: Tensor
    ) -> Tensor:
        ctx.function, ctx.module = function, module
        y, ctx.call = recorded_call(function, x)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_(ctx.needs_input_grad[2])
        with ctx.call.replay(ctx.module):
            y = ctx.function(x)
        y.backward(gradient)
        return None, None, x.grad, None


def recompute(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """function(x), keeping x alone for the backward pass, which runs the function again.

    `module` holds the parameters and batch norms that the function uses. Costs one extra forward; gradients
    are those of plain autograd, random numbers those of the first run.
    """
    if not torch.is_grad_enabled() or not (x.requires_grad or has_trainable_parameters(module)):
        return function(x)
    handle = graph_handle(x.device, has_trainable_parameters(module))
    y: Tensor = _Recompute.apply(function, module, x, handle)  # type: ignore[no-untyped-call]
    return y


_TENSOR = object()  # in a flattened call: here is a tensor


@dataclass
class _Call:
    """A call with its tensors taken out: `run` puts others in their place."""

    name: str
    module: nn.Module
    forward: Callable[..., Any]
    leaves: list[Any]
    layout: TreeSpec
    returned: tuple[list[Any], TreeSpec] | None = None  # by the first run, with its tensors taken out

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that the call returns."""
        args, kwargs = _filled(self.leaves, self.layout, tensors)
        leaves, layout = tree_flatten(self.forward(*args, **kwargs))
        if self.returned is None:
            self.returned = _without_tensors(leaves), layout
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _without_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _filled(leaves: Sequence[Any], layout: TreeSpec, tensors: Sequence[Tensor]) -> Any:
    """The containers of a flattened call, with its tensors."""
    given = iter(tensors)
    return tree_unflatten([next(given) if leaf is _TENSOR else leaf for leaf in leaves], layout)


class _RecomputeCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, _: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        device = tensors[0].device if tensors else torch.device("cpu")
        rng, versions = RngState.capture(device), [tensor._version for tensor in tensors]
        outputs = call.run(tensors)
        if versions != [tensor._version for tensor in tensors]:
            raise ValueError(f"rewire: {call.name} changes its input in place, so it cannot run again")
        ctx.call, ctx.state = call, CallState.after(rng)
        ctx.save_for_backward(*tensors)
        # An input that is returned as it is would lose its graph.
        outputs = tuple(y.view_as(y) if any(y is x for x in tensors) else y for y in outputs)
        ctx.mark_non_differentiable(*(y for y in outputs if not y.is_floating_point()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        tensors = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with ctx.state.replay(ctx.call.module):
            outputs = ctx.call.run(tensors)
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
        return None, None, *(x.grad for x in tensors)


def recompute_call(
    name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """forward(*args, **kwargs), keeping its arguments alone for the backward pass, which runs it again.

    As `recompute`, for any arguments and results: tensors, also in tuples, lists and dicts. `name` and
    `module` are of the module whose forward it is. Raises ValueError if it changes a tensor in place.
    """
    leaves, layout = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    trainable = has_trainable_parameters(module)
    if not torch.is_grad_enabled() or not (trainable or any(x.requires_grad for x in tensors)):
        return forward(*args, **kwargs)
    call = _Call(name, module, forward, _without_tensors(leaves), layout)
    device = tensors[0].device if tensors else torch.device("cpu")
    handle = graph_handle(device, trainable)
    outputs = _RecomputeCall.apply(call, handle, *tensors)  # type: ignore[no-untyped-call]
    assert call.returned is not None
    return _filled(*call.returned, outputs)
