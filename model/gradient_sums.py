"""Sums of gradients that arrive in parts, in float32 at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor


class GradientSums:
    """Sums gradients over parts: in place where they are float32 or wider, else in float32 on the side.

    bfloat16 keeps 8 bits: added up in it, the share of the hundredth part would be rounded away.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors
        self.float32_sums: dict[int, Tensor] = {}

    def add_on_arrival(self) -> None:
        """From now on each low-precision gradient goes into its sum as soon as autograd has accumulated it.

        So none lies beside its sum until its part is done. For tensors that live no longer than the sums.
        """
        for i, tensor in enumerate(self.tensors):
            if _is_low_precision(tensor):
                # Of the sums alone: a hook that held this object would hold the tensor itself.
                hook = partial(_add_gradient, self.float32_sums, i)
                tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def add_low_precision(self) -> None:
        """Move the low-precision gradients of the last part into their float32 sums."""
        for i, tensor in enumerate(self.tensors):
            if _is_low_precision(tensor):
                _add_gradient(self.float32_sums, i, tensor)

    def put_back(self) -> None:
        """Make each sum the gradient of its tensor again, in the tensor's dtype."""
        for i, total in self.float32_sums.items():
            self.tensors[i].grad = total.to(self.tensors[i].dtype)
        self.float32_sums.clear()

    def __iter__(self) -> Iterator[Tensor]:
        """Each tensor's gradient; zeros, never None: a rank without one would mis-pair the reduction."""
        for i, tensor in enumerate(self.tensors):
            if i in self.float32_sums:
                yield self.float32_sums.pop(i).to(tensor.dtype)
            else:
                yield torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _is_low_precision(tensor: Tensor) -> bool:
    return tensor.dtype.itemsize < 4


def _add_gradient(sums: dict[int, Tensor], i: int, tensor: Tensor) -> None:
    """Add the gradient of tensor number i to its sum; the tensor has none afterwards."""
    if tensor.grad is None:
        return
    gradient, tensor.grad = tensor.grad, None
    if i in sums:
        sums[i] += gradient
    else:
        sums[i] = gradient.float()
