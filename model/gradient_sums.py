"""Sums of gradients that arrive in parts, in float32 at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class GradientSums:
    """Sums gradients over parts: in place where they are float32 or wider, else in float32 on the side.

    bfloat16 keeps 8 bits: added up in it, the share of the hundredth part would be rounded away.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors
        self.float32_sums: dict[int, Tensor] = {}

    def add_low_precision(self) -> None:
        """Move the low-precision gradients of the last part into their float32 sums."""
        for i, tensor in enumerate(self.tensors):
            if tensor.dtype.itemsize >= 4 or tensor.grad is None:
                continue
            gradient, tensor.grad = tensor.grad, None
            if i in self.float32_sums:
                self.float32_sums[i] += gradient
            else:
                self.float32_sums[i] = gradient.float()

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
