"""Video Swin: attention within windows of tokens, the windows of every second block shifted by half.

Z. Liu et al., "Video Swin Transformer", CVPR 2022. With the same weights, torchvision's swin3d_* and
mmaction2's SwinTransformer3D (patch_norm=True) compute our numbers at every size. All three shrink a window,
and forget its shift, along an axis no longer than the window, and then read the leading rows and columns of
the full window's relative positions; in all, padding takes part in attention, as zeros behind the norm. The
two differ in names, in what they return (mmaction2 the features that torchvision classifies), in how
drop-path draws (mmcv floors uniform numbers) and in its rate: 0.1 in torchvision, 0.1 to 0.3 in the paper.

Inside, tokens lie channels last: (n, t, h, w, D). A block has two residual branches for `model.rewire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..slices import RowFunction, Rows
from .backbone import Backbone
from .drop_path import rising_rates
from .transformer import RowAttention, TransformerBlock, initialise_linears
from .windows import Size, Windows, fit_window, mask_of, pad_to_multiple, relative_positions


class WindowAttention(RowAttention):
    """Multi-head self-attention within (shifted) windows, with a trained bias per relative position.

    Not torch's scaled_dot_product_attention: on a CPU it keeps as much for the backward (the bias is trained)
    and, without a graph, rounds otherwise, so that a recomputed branch would not be equal.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: Size, shift: Size) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        rows = prod(2 * width - 1 for width in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)

    def bias(self, tokens: int) -> Tensor:
        """(heads, tokens, tokens). Fewer tokens than the window has: its first ones, as in the references."""
        index = self.relative_position_index[:tokens, :tokens]
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1)

    def attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows: (n, windows, tokens, D); mask: (windows, tokens, tokens). Returns the shape of windows."""
        n, count, tokens, dim = windows.shape
        qkv = self.qkv(windows).view(n, count, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (n, windows, heads, tokens, D / heads) each
        scores = q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1)
        scores += self.bias(tokens)  # in place: no product keeps its output
        if mask is not None:
            scores += mask[:, None] * -100.0
        # Without dtype, a GPU's autocast has softmax return float32, and the product keeps a copy besides.
        y: Tensor = scores.softmax(dim=-1, dtype=v.dtype) @ v
        y = self.proj(y.transpose(2, 3).reshape(n, count, tokens, dim))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, h, w, D) -> the same."""
        windows = self.rows(x)
        regions = windows.regions()
        by_sample = torch.unflatten(windows.split(x), 0, (len(x), -1))
        y = self.attend(by_sample, None if regions is None else mask_of(regions))
        return windows.join(y.flatten(0, 1))

    def rows(self, x: Tensor) -> Windows:
        """The windows of tokens x (n, t, h, w, D)."""
        window, shift = fit_window(tuple(x.shape[1:4]), self.window, self.shift)
        return Windows(x.shape, window, shift, self.heads, x.device)

    def start(self, norm: nn.Module, windows: Rows) -> RowFunction:
        """For `model.slices`: norm, then attention, of some of the windows."""
        assert isinstance(windows, Windows)
        regions = windows.regions()

        def function(rows: Tensor, first: int) -> Tensor:
            rows, numbers = norm(rows), windows.samples(first, first + len(rows))
            if windows.inside is not None:  # padding is zero behind the norm
                rows = rows.where(windows.inside[numbers], 0)
            mask = None if regions is None else mask_of(regions[numbers])
            return self.attend(rows[None], mask)[0]

        return function


class PatchEmbed(nn.Module):
    """One token per patch of pixels: a linear map and a norm."""

    def __init__(self, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, L, H, W) -> (n, t, h, w, D); the last patches are padded with zeros."""
        x = pad_to_multiple(x.movedim(1, 4), self.patch).movedim(4, 1)
        x = self.norm(self.proj(x).movedim(1, 4))
        return x


class PatchMerging(nn.Module):
    """Makes one token of 2x2 (in h and w): a norm and a linear map of the four, side by side."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, h, w, D) -> (n, t, h / 2, w / 2, 2 D), rounded up: odd sizes are padded with zeros."""
        # A rewired network's states are float32, whatever the dtype of its parameters.
        x = pad_to_multiple(x.to(self.norm.weight.dtype), (1, 2, 2))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return x


@dataclass(frozen=True)
class Layout:
    """Sizes of one network; `dim` doubles from stage to stage and ends as D."""

    dim: int  # channels of the first stage
    depths: tuple[int, ...]  # blocks per stage
    heads: tuple[int, ...]  # per stage
    window: Size = (8, 7, 7)  # tokens
    patch: tuple[int, int, int] = (2, 4, 4)  # frames, pixels


class VideoSwin(Backbone):
    """The family: `patch_embed`, `layer1`, `merge1`, `layer2`, ..., `norm`; no classifier.

    drop_path: the rate of the last block; it rises linearly from 0 in the first.
    """

    def __init__(self, layout: Layout, drop_path: float) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(layout.patch, layout.dim)
        self.stage_names = [f"layer{number}" for number in range(1, len(layout.depths) + 1)]
        self.merge_names = [f"merge{number}" for number in range(1, len(layout.depths))]
        self.recomputed_names = ["patch_embed", *self.merge_names]
        rates = iter(rising_rates(drop_path, sum(layout.depths)))
        for stage, name in enumerate(self.stage_names):
            if stage > 0:
                self.add_module(self.merge_names[stage - 1], PatchMerging(layout.dim * 2 ** (stage - 1)))
            self.add_module(name, _stage(layout, stage, rates))
        self.num_features = layout.dim * 2 ** (len(layout.depths) - 1)
        self.norm = nn.LayerNorm(self.num_features)
        initialise_linears(self)  # as torchvision

    def parts(self) -> list[list[str]]:
        """As in Backbone; the merging after a stage goes with it."""
        stages = [[name, merge] for name, merge in zip(self.stage_names, self.merge_names, strict=False)]
        return [["patch_embed"], *stages, [self.stage_names[-1]]]

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, t, h, w) in the dtype of x.

        t is L / 2, and h, w are H, W divided by 4 and by 2 per merging, each time rounded up.
        """
        y: Tensor = self.patch_embed(x)
        for stage, name in enumerate(self.stage_names):
            if stage > 0:
                y = self.get_submodule(self.merge_names[stage - 1])(y)
            y = self.get_submodule(name)(y)
        y = self.norm(y.to(self.norm.weight.dtype))
        return y.movedim(4, 1).to(x.dtype)


def _stage(layout: Layout, stage: int, rates: Iterator[float]) -> nn.Sequential:
    """The blocks of a stage, counted from 0; rates: of drop-path, one for each block."""
    dim, heads = layout.dim * 2**stage, layout.heads[stage]
    shifts: list[Size] = [(0, 0, 0), tuple(width // 2 for width in layout.window)]
    blocks = []
    for number in range(layout.depths[stage]):
        attention = WindowAttention(dim, heads, layout.window, shifts[number % 2])
        blocks.append(TransformerBlock(dim, attention, next(rates)))
    return nn.Sequential(*blocks)


def video_swin_t(drop_path: float = 0.1) -> VideoSwin:
    """Video Swin-T: 27.9 M parameters, D = 768, t = L / 2."""
    return VideoSwin(Layout(96, (2, 2, 6, 2), (3, 6, 12, 24)), drop_path)


def video_swin_s(drop_path: float = 0.2) -> VideoSwin:
    """Video Swin-S: 49.5 M parameters, D = 768, t = L / 2."""
    return VideoSwin(Layout(96, (2, 2, 18, 2), (3, 6, 12, 24)), drop_path)


def video_swin_b(drop_path: float = 0.3) -> VideoSwin:
    """Video Swin-B: 87.6 M parameters, D = 1024, t = L / 2."""
    return VideoSwin(Layout(128, (2, 2, 18, 2), (4, 8, 16, 32)), drop_path)
