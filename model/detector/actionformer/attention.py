"""Attention over time: each step attends to all others, or to a window around it, in blocks.

Local attention computes what full attention with a band as its mask computes, in memory and time of
T x window instead of T x T: the steps are cut into blocks, and each block meets the keys that any of its
steps can see.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, window: int) -> Tensor:
    """Scaled dot-product attention over the steps that count.

    queries, keys, values: (B, heads, T, c); mask: (B, T) bool, False for padding. window: odd, the steps that
    each one sees, itself in the middle; 0: all. Returns (B, heads, T, c); what stands at padding is of no
    meaning, and finite.
    """
    queries = queries * queries.shape[-1] ** -0.5
    if window == 0 or window >= 2 * queries.shape[2]:
        return _attend_to(queries, keys, values, mask[:, None, None])
    return _attend_in_blocks(queries, keys, values, mask, reach=window // 2)


def _attend_to(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """seen: bool, broadcasts to (..., queries, keys). A query that sees nothing gets a mean of all."""
    scores = queries @ keys.transpose(-1, -2)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    attended: Tensor = scores.softmax(-1) @ values
    return attended


def _attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, reach: int) -> Tensor:
    """As `attend`, each step sees `reach` steps on either side."""
    num_steps, block = queries.shape[2], 2 * reach + 1
    filling = -num_steps % block  # behind the end, up to whole blocks
    span = block + 2 * reach  # keys that a block can see

    def blocks_of(x: Tensor) -> Tensor:
        """(..., T, c) -> (..., blocks, span, c); a block begins `reach` steps before its queries."""
        return F.pad(x, (0, 0, reach, reach + filling)).unfold(-2, span, block).transpose(-1, -2)

    # (B, heads, blocks, block, c)
    split = torch.unflatten(F.pad(queries, (0, 0, 0, filling)), 2, (-1, block))
    there = F.pad(mask, (reach, reach + filling)).unfold(-1, span, block)  # (B, blocks, span)
    ahead = torch.arange(span, device=mask.device) - torch.arange(block, device=mask.device)[:, None]
    near = (ahead >= 0) & (ahead <= 2 * reach)  # (block, span)
    seen = (there[:, :, None] & near)[:, None]  # (B, 1, blocks, block, span)
    attended = _attend_to(split, blocks_of(keys), blocks_of(values), seen)
    return attended.flatten(2, 3)[:, :, :num_steps]
