"""The transformer block of the Video Swin and VideoMAE backbones, and their initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prepared import BranchFunction, ResidualBlock
from ..slices import RowFunction, Rows, SliceableBranch
from .drop_path import DropPath, scaled


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


@dataclass(frozen=True)
class Tokens:
    """Rows that are tokens, of any shape (..., D); for `model.slices`."""

    shape: torch.Size

    @property
    def count(self) -> int:
        """Tokens of all samples."""
        return prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        """Of a token in the backward pass: four times as wide in the middle, with gradients."""
        return 24 * self.shape[-1]

    def take(self, x: Tensor, first: int, end: int) -> Tensor:
        """(..., D) -> (end - first, D)."""
        return x.view(-1, x.shape[-1])[first:end]

    def put(self, x: Tensor, rows: Tensor, first: int, end: int) -> None:
        """The inverse of take."""
        x.view(-1, x.shape[-1])[first:end] = rows


def tokens_of(x: Tensor) -> Rows:
    """The tokens of x (..., D)."""
    return Tokens(x.shape)


class RowAttention(nn.Module):
    """An attention whose rows, windows or samples, do not see each other. Keeps the shape (..., D)."""

    def rows(self, x: Tensor) -> Rows:
        """How an input like x falls into rows."""
        raise NotImplementedError

    def start(self, norm: nn.Module, rows: Rows) -> RowFunction:
        """The function of some rows: the norm, then this attention."""
        raise NotImplementedError


class TransformerBlock(ResidualBlock):
    """x + attention, then x + MLP: two branches, each with a norm before it and drop-path after it.

    Both can run on slices of their rows (model/slices.py).
    """

    post_activation = False
    downsample = None

    def __init__(self, dim: int, attention: RowAttention, drop_path: float, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def attention_branch(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same: norm, attention, drop-path."""
        y: Tensor = self.drop_path(self.attn(self.norm1(x)))
        return y

    def mlp_branch(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same: norm, MLP, drop-path."""
        y: Tensor = self.drop_path(self.mlp(self.norm2(x)))
        return y

    @property
    def branches(self) -> tuple[BranchFunction, ...]:
        attention = SliceableBranch(self.attention_branch, self.attn.rows, self._start_attention)
        return attention, SliceableBranch(self.mlp_branch, tokens_of, self._start_mlp)

    def _start_attention(self, like: Tensor, rows: Rows) -> RowFunction:
        return self._dropped(self.attn.start(self.norm1, rows), like, rows)

    def _start_mlp(self, like: Tensor, rows: Rows) -> RowFunction:
        return self._dropped(lambda tokens, _: self.mlp(self.norm2(tokens)), like, rows)

    def _dropped(self, function: RowFunction, like: Tensor, rows: Rows) -> RowFunction:
        """The function of rows with drop-path, drawn once for each sample of `like` (n, ...)."""
        factors = self.drop_path.draw(like)
        if factors is None:
            return function
        by_row = factors.repeat_interleave(rows.count // len(like))

        def with_drop_path(part: Tensor, first: int) -> Tensor:
            return scaled(function(part, first), by_row[first : first + len(part)])

        return with_drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same."""
        for branch in self.branches:
            x = x + branch(x)
        return x


def initialise_linears(network: nn.Module) -> None:
    """Linear weights from a normal distribution of standard deviation 0.02, biases 0; the rest as torch's."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
