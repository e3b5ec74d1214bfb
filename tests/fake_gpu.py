"""A GPU that computes nothing, without a driver: its tensors have shapes, dtypes and a device, and no values.

PyTorch's FakeTensorMode has CUDA tensors, too, but their backward starts a thread for the device, which needs
one. Here operations run on the meta device. What a real GPU refuses is refused: an operation on tensors of
both devices. What makes the host wait for a real one is counted: reading values, copying them to the CPU,
copying to the GPU without non_blocking, results whose shape depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, META = torch.device("cuda", 0), torch.device("meta")
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
BY_VALUE = (aten.nonzero.default, aten.masked_select.default, aten._unique2.default)


def is_cuda(value: object) -> bool:
    """Whether an argument names the GPU."""
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )


class GpuTensor(Tensor):
    """A tensor on the GPU; `meta` has its shape and dtype."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> GpuTensor:
        options = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype}
        made = Tensor._make_wrapper_subclass(cls, meta.size(), layout=meta.layout, device=META, **options)
        made.meta = meta
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return launch(function, args, kwargs or {})


class Stream:
    """A queue of the GPU: what was put into it, a list of (operation, tensor) that `Stream.running` adds to.

    Waiting for another one adds ("wait", what that has had until then).
    """

    running: Stream
    made: list[Stream]

    def __init__(self, device: object = None):
        self.work: list[tuple[str, Any]] = []
        Stream.made.append(self)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def record_event(self) -> list[tuple[str, Any]]:
        return list(self.work)

    def wait_event(self, event: list[tuple[str, Any]]) -> None:
        self.work.append(("wait", event))


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    """Inside, operations go into this stream."""
    before, Stream.running = Stream.running, stream
    try:
        yield
    finally:
        Stream.running = before


Stream.made = []
Stream.running = Stream()
waits: list[str] = []  # operations for which the host would have waited


def downloaded(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Values for a tensor that has none: rising from 0.1 to 0.9, true if it is bool."""
    if x.dtype == torch.bool:
        return torch.ones(x.shape, dtype=torch.bool)
    return torch.linspace(0.1, 0.9, x.numel()).reshape(x.shape).to(dtype or x.dtype)


def check_devices(function, tensors: list[Tensor]) -> None:
    """RuntimeError for tensors of both devices, but for numbers on the CPU, and indices, which are copied."""
    on_cpu = [x for x in tensors if not isinstance(x, GpuTensor) and x.dim()]
    if not on_cpu or len(on_cpu) == len(tensors):
        return
    if function not in INDEXING:
        shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {shapes}")
    waits.append(f"{function} with indices on the CPU")


def launch(function, args: tuple, kwargs: dict) -> Any:
    """An operation with tensors of the GPU among its arguments."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if function is aten._local_scalar_dense.default:
        waits.append(str(function))
        return downloaded(args[0]).item()
    if function is aten._to_copy.default and torch.device(kwargs.get("device") or CUDA).type == "cpu":
        waits.append(f"{function} to the CPU")
        return downloaded(args[0], kwargs.get("dtype"))
    if function is aten.copy_.default and len({type(x) for x in tensors}) == 2:
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if not (non_blocking and isinstance(args[0], GpuTensor)):
            waits.append(f"{function} between devices")
        Stream.running.work.append(("copy", args[0]))
        return args[0]
    if function in BY_VALUE or (
        function in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
    ):
        raise RuntimeError(f"{function}: its shape depends on values, so that the host waits for them")
    check_devices(function, tensors)
    return on_meta(function, args, kwargs, tensors)


def on_meta(function, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Any:
    """The operation on the meta device; what it changes in place, or returns as it is, stays that tensor."""
    known = {id(x.meta): x for x in tensors if isinstance(x, GpuTensor)}

    def without_values(x: Any) -> Any:
        if is_cuda(x):
            return META
        if isinstance(x, GpuTensor):
            return x.meta
        return torch.empty_like(x, device=META) if isinstance(x, Tensor) else x

    def on_gpu(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else GpuTensor(x)

    return tree_map(on_gpu, function(*tree_map(without_values, args), **tree_map(without_values, kwargs)))


def uploaded(x: Tensor, dtype: torch.dtype | None = None) -> GpuTensor:
    """A tensor of the CPU, on the GPU."""
    return GpuTensor(torch.empty_strided(x.size(), x.stride(), dtype=dtype or x.dtype, device=META))


class FakeGpu(TorchFunctionMode):
    """Inside, "cuda" is the GPU that computes nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        first = args[0] if args else None
        if name == "backward":
            return self._backward(args, kwargs)
        if name == "tolist" and isinstance(first, GpuTensor):
            waits.append("tolist")
            return torch.zeros(first.shape).tolist()
        goes_to_gpu = is_cuda(kwargs.get("device")) or any(is_cuda(value) for value in args[1:])
        if name == "cuda" or (name == "to" and goes_to_gpu):
            return self._to_gpu(first, args, kwargs)
        if goes_to_gpu and not any(isinstance(x, GpuTensor) for x in tree_leaves(args)):
            return self._created(function, args, kwargs)
        return function(*args, **kwargs)

    def _backward(self, args: tuple, kwargs: dict) -> None:
        """Autograd leaves this mode while it runs; the functions of ours that it calls need it."""
        roots = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
        given = args[1] if len(args) > 1 else kwargs.get("gradient", kwargs.get("grad_tensors"))
        given = given if isinstance(given, (tuple, list)) else (given,) * len(roots)
        gradients = tuple(
            torch.ones_like(root) if one is None else one for root, one in zip(roots, given, strict=True)
        )
        with self:
            torch.autograd.graph._engine_run_backward(
                tuple(roots), gradients, False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _to_gpu(self, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        dtype = kwargs.get("dtype") or next((a for a in args[1:] if isinstance(a, torch.dtype)), x.dtype)
        if isinstance(x, GpuTensor):
            return x if dtype == x.dtype else x.to(dtype)
        if not kwargs.get("non_blocking"):
            waits.append(f"to(cuda) of {tuple(x.shape)} without non_blocking")
        return uploaded(x, dtype)

    def _created(self, function, args: tuple, kwargs: dict) -> Tensor:
        requires_grad = kwargs.pop("requires_grad", False)
        if function in (torch.tensor, torch.as_tensor):
            waits.append(f"{function.__name__} on the GPU")
        made = function(*args, **{**kwargs, "device": META})
        made = tuple(map(GpuTensor, made)) if isinstance(made, tuple) else GpuTensor(made)
        return made.requires_grad_() if requires_grad else made


def to_gpu(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its tensors on the GPU, parameters in this dtype, as DeepSpeed casts them."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                made = uploaded(parameter, dtype)
                part._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = uploaded(buffer)
    return module


@contextmanager
def fake_gpu() -> Iterator[list[str]]:
    """Inside, "cuda" is the GPU that computes nothing; yields the list of waits, filled as they come."""
    state = torch.zeros(16, dtype=torch.uint8)
    waits.clear()
    Stream.made.clear()
    Stream.running = Stream()
    with (
        patch("torch.cuda.get_rng_state", lambda device=None: state),
        patch("torch.cuda.set_rng_state", lambda new, device=None: None),
        patch("torch.cuda.Stream", Stream),
        patch("torch.cuda.current_stream", lambda device=None: Stream.running),
        patch("torch.cuda.stream", on_stream),
        FakeGpu(),
    ):
        yield waits
