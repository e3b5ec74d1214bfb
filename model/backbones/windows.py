"""Windows of tokens: cutting tokens into (shifted) windows and back, whole or some windows at a time.

Tokens lie channels last, (n, t, h, w, D), a window is a box of them, and windows count in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, ...]  # three numbers: along t, h and w


def fit_window(size: Size, window: Size, shift: Size) -> tuple[Size, Size]:
    """Window and shift for tokens of this size: an axis within one window is that window, and not shifted."""
    axes = list(zip(size, window, shift, strict=True))
    return tuple(min(n, width) for n, width, _ in axes), tuple(d if n > width else 0 for n, width, d in axes)


def pad_to_multiple(x: Tensor, multiple: Size) -> Tensor:
    """Zeros after the end of t, h and w; x: (n, t, h, w, D). Returns x itself if nothing is missing."""
    t, h, w = (-extent % divisor for extent, divisor in zip(x.shape[1:4], multiple, strict=True))
    return F.pad(x, (0, 0, 0, w, 0, h, 0, t)) if t or h or w else x


def partition(x: Tensor, window: Size) -> Tensor:
    """(n, t, h, w, D) -> (n, windows, tokens, D), both in row-major order; the window divides the size."""
    n, t, h, w, channels = x.shape
    x = x.view(n, t // window[0], window[0], h // window[1], window[1], w // window[2], window[2], channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n, -1, prod(window), channels)


def unpartition(windows: Tensor, window: Size, size: Size) -> Tensor:
    """The inverse of `partition`: (n, windows, tokens, D) -> (n, *size, D)."""
    counts = [extent // width for extent, width in zip(size, window, strict=True)]
    x = windows.view(len(windows), *counts, *window, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(windows), *size, -1)


def relative_positions(window: Size) -> Tensor:
    """(tokens, tokens) int32: for query and key, the row of the bias table that belongs to their offset."""
    tokens = torch.cartesian_prod(*(torch.arange(width) for width in window))  # (tokens, 3)
    offsets = tokens[:, None] - tokens[None] + torch.tensor(window) - 1  # from 0 on
    rows = 2 * torch.tensor(window) - 1
    return ((offsets[..., 0] * rows[1] + offsets[..., 1]) * rows[2] + offsets[..., 2]).int()


def shift_regions(size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """(windows, tokens) uint8: tokens of a window with other numbers were no neighbours before the shift.

    The shift rolls the first tokens of an axis behind the last ones, into the last window.
    """
    rolled = torch.zeros(1, *size, 1, dtype=torch.uint8, device=device)  # a bit per axis
    for axis, step in enumerate(shift, start=1):
        rolled.narrow(axis, size[axis - 1] - step, step).add_(1 << axis)
    return partition(rolled, window)[0, :, :, 0]


def mask_of(regions: Tensor) -> Tensor:
    """(windows, tokens) -> (windows, tokens, tokens) bool: True where query and key do not see each other."""
    return regions[:, :, None] != regions[:, None, :]


@dataclass(frozen=True)
class Windows:
    """How tokens (n, t, h, w, D) fall into the shifted windows of an attention; Rows for `model.slices`."""

    shape: torch.Size
    window: Size
    shift: Size
    heads: int
    device: torch.device

    @property
    def size(self) -> Size:
        """t, h and w with the padding behind their ends."""
        return tuple(-(-n // width) * width for n, width in zip(self.shape[1:4], self.window, strict=True))

    @property
    def padded(self) -> bool:
        """Whether some windows hold padding."""
        return self.size != tuple(self.shape[1:4])

    @property
    def per_sample(self) -> int:
        """Windows of a sample."""
        return prod(self.size) // prod(self.window)

    @property
    def count(self) -> int:
        """Windows of all samples."""
        return self.shape[0] * self.per_sample

    @property
    def elements(self) -> int:
        """Of a window in the backward pass: its tokens at each step, scores, their gradients."""
        tokens = prod(self.window)
        return tokens * (16 * self.shape[4] + 5 * self.heads * tokens)

    def split(self, x: Tensor) -> Tensor:
        """(n, t, h, w, D) -> (count, tokens, D); padding is zero."""
        x = pad_to_multiple(x, self.window)
        if any(self.shift):
            x = x.roll([-step for step in self.shift], dims=(1, 2, 3))
        return partition(x, self.window).flatten(0, 1)

    def join(self, rows: Tensor) -> Tensor:
        """(count, tokens, D) -> (n, t, h, w, D), without the padding."""
        t, h, w = self.shape[1:4]
        x = unpartition(torch.unflatten(rows, 0, (self.shape[0], -1)), self.window, self.size)
        if any(self.shift):
            x = x.roll(self.shift, dims=(1, 2, 3))
        return x[:, :t, :h, :w]

    @cached_property
    def inside(self) -> Tensor | None:
        """(windows of a sample, tokens, 1) bool: False where there is padding; None: nowhere."""
        if not self.padded:
            return None
        tokens = torch.ones(1, *self.shape[1:4], 1, dtype=torch.bool, device=self.device)
        return replace(self, shape=tokens.shape).split(tokens)

    @cached_property
    def numbers(self) -> Tensor:
        """(count, tokens): which token of (n, t, h, w) each is; for padding that of another in its window."""
        n, t, h, w, _ = self.shape
        tokens = torch.arange(n * t * h * w, device=self.device).view(n, t, h, w, 1)
        numbers = self.split(tokens)[..., 0]
        if self.inside is None:
            return numbers
        inside = self.inside[..., 0].repeat(n, 1)
        return numbers.where(inside, numbers.gather(1, _first_of(inside)))

    def samples(self, first: int, end: int) -> Tensor:
        """The numbers of windows first to end, without it, within their samples."""
        return torch.arange(first, end, device=self.device) % self.per_sample

    def take(self, x: Tensor, first: int, end: int) -> Tensor:
        """Windows (end - first, tokens, D) of x (n, t, h, w, D); padding is zero."""
        rows = x.view(-1, x.shape[4])[self.numbers[first:end]]
        return rows if self.inside is None else rows.where(self.inside[self.samples(first, end)], 0)

    def put(self, x: Tensor, rows: Tensor, first: int, end: int) -> None:
        """The inverse of take; padding is left out."""
        if self.inside is not None:  # it is written where that other token is, with that token's values
            inside = self.inside[self.samples(first, end)]
            other = _first_of(inside[..., 0])[..., None].expand(-1, -1, rows.shape[2])
            rows = rows.where(inside, rows.gather(1, other))
        x.view(-1, x.shape[4])[self.numbers[first:end]] = rows

    def regions(self) -> Tensor | None:
        """As `shift_regions`; None if nothing is shifted."""
        return shift_regions(self.size, self.window, self.shift, self.device) if any(self.shift) else None


def _first_of(inside: Tensor) -> Tensor:
    """(rows, tokens) bool -> (rows, 1): the first True of each row; there is one in every window."""
    return inside.int().argmax(dim=1, keepdim=True)
