"""Plain vision transformers over tubelets of 2x16x16 pixels, as VideoMAE pretrains and fine-tunes them.

Z. Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training", NeurIPS 2022. The key names are those of its fine-tuning model (minus `head`), with one
difference: the last norm is called `norm`, whether the source calls it `norm`, `fc_norm` or `layernorm`.

What the sources do after the last block differs, and so this is ours: `norm` is applied to every token, as in
VideoMAE's pretraining encoder and in Hugging Face's VideoMAEModel with `use_mean_pooling=False`. VideoMAE's
classifier and mmaction2 apply `fc_norm` to the mean of all tokens instead, and mmaction2's feature map
(`return_feat_map=True` with mean pooling), which AdaTAD uses, is not normalised at all, nor is the output of
Hugging Face's model with `use_mean_pooling=True`: those two are `Layout.norm=False`, the *_mmaction2 here.

Positions: row t * side^2 + y * side + x of one sine-cosine table belongs to token (t, y, x), where `side` is
that of the token grid the weights were trained on. Longer or shorter clips read more or fewer rows, as in
VideoMAE. For images of another size the table of each time step is interpolated bicubically, as AdaTAD does
(S. Liu et al., CVPR 2024), so that a row still means a position in the image: VideoMAE's own rule, the same
formula over another number of tokens, would move every position that the weights were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..slices import RowFunction, Rows
from .backbone import Backbone
from .drop_path import rising_rates
from .transformer import RowAttention, TransformerBlock, initialise_linears

TUBELET = (2, 16, 16)  # frames, rows, columns of a token


@dataclass(frozen=True)
class Layout:
    """Sizes of one network."""

    features: int  # D; even, a multiple of heads
    depth: int  # blocks
    heads: int
    drop_path: float = 0.0  # rate of the last block; it rises linearly from 0 in the first
    image_side: int = 224  # pixels; of the images that the weights were trained on
    positions: bool = True  # whether the fixed position table is added to the tokens
    norm: bool = True  # whether a norm follows the last block


def sine_table(num_positions: int, features: int, device: torch.device) -> Tensor:
    """(num_positions, features): sine of position / 10000^(2i / features) in column 2i, cosine in 2i + 1."""
    powers = torch.arange(0, features, 2, dtype=torch.float64, device=device) / features
    positions = torch.arange(num_positions, dtype=torch.float64, device=device)
    angles = positions[:, None] * 10000.0**-powers
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1).float()


def position_table(grid: tuple[int, int, int], side: int, features: int, device: torch.device) -> Tensor:
    """The rows for a grid of (t, h, w) tokens, by the rule of the docstring above: (t h w, features)."""
    steps, height, width = grid
    table = sine_table(steps * side * side, features, device)
    if (height, width) == (side, side):
        return table
    maps = table.view(steps, side, side, features).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=(height, width), mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(-1, features)


class PatchEmbed(nn.Module):
    """Clips to tokens, each with its position."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.proj = nn.Conv3d(3, layout.features, TUBELET, TUBELET)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, L, H, W) -> (n, L/2 H/16 W/16, D)."""
        maps: Tensor = self.proj(x)  # (n, D, t, h, w)
        tokens = maps.flatten(2).transpose(1, 2).contiguous()
        if self.layout.positions:
            # Made anew, not a buffer: a buffer would be cast with the network, and lost on the meta device.
            side = self.layout.image_side // TUBELET[1]
            steps, height, width = maps.shape[2:]
            tokens += position_table((steps, height, width), side, self.layout.features, x.device)
        return tokens


@dataclass(frozen=True)
class Samples:
    """Rows that are samples; for `model.slices`."""

    count: int
    elements: int

    def take(self, x: Tensor, first: int, end: int) -> Tensor:
        """(n, tokens, D) -> (end - first, tokens, D)."""
        return x[first:end]

    def put(self, x: Tensor, rows: Tensor, first: int, end: int) -> None:
        """The inverse of take."""
        x[first:end] = rows


class Attention(RowAttention):
    """Multi-head self-attention; queries and values have a bias, keys none (softmax would cancel it)."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(features))
        self.v_bias = nn.Parameter(torch.zeros(features))
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, D) -> (n, tokens, D)."""
        qkv = self.qkv(x)
        qkv += torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        heads = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, n, heads, tokens, d)
        y: Tensor = F.scaled_dot_product_attention(*heads.unbind())
        y = self.proj(y.transpose(1, 2).flatten(2))
        return y

    def rows(self, x: Tensor) -> Samples:
        """The samples of tokens x (n, tokens, D), which attend to all tokens of theirs."""
        return Samples(len(x), 16 * x.shape[1] * x.shape[2])

    def start(self, norm: nn.Module, samples: Rows) -> RowFunction:
        """For `model.slices`: norm, then attention, of some of the samples."""

        return lambda rows, _: self.forward(norm(rows))


class Block(TransformerBlock):
    """The transformer block on states (n, tokens, D)."""

    def __init__(self, features: int, heads: int, drop_path: float) -> None:
        super().__init__(features, Attention(features, heads), drop_path, eps=1e-6)


class VideoMAE(Backbone):
    """The family: `patch_embed`, `blocks` on states (n, tokens, D), `norm`; no classifier."""

    stage_names = ("blocks",)
    recomputed_names = ("patch_embed",)

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.num_features = layout.features
        self.patch_embed = PatchEmbed(layout)
        rates = rising_rates(layout.drop_path, layout.depth)
        self.blocks = nn.Sequential(*(Block(layout.features, layout.heads, rate) for rate in rates))
        self.norm = nn.LayerNorm(layout.features, eps=1e-6) if layout.norm else nn.Identity()
        initialise_linears(self)  # as VideoMAE

    def parts(self) -> list[list[str]]:
        """As in Backbone; all blocks are one stage, as one recurrence runs through them."""
        return [["patch_embed"], ["blocks"]]

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, L/2, H/16, W/16) in the dtype of x.

        Raises ValueError if L, H, W are not multiples of 2, 16, 16.
        """
        size = tuple(x.shape[2:])
        if any(pixels % length or not pixels for pixels, length in zip(size, TUBELET, strict=True)):
            raise ValueError(
                f"clip: got {'x'.join(map(str, size))} (frames, rows, columns), want multiples of 2x16x16, "
                "VideoMAE's tubelet; change the number of frames or the size"
            )
        y: Tensor = self.blocks(self.patch_embed(x))
        y = self.norm(y.to(x.dtype))  # a rewired stage gives float32, whatever the weights are
        grid = [pixels // length for pixels, length in zip(size, TUBELET, strict=True)]
        return torch.unflatten(y.transpose(1, 2), 2, grid).to(x.dtype)


# The drop-path rate is that of VideoMAE's fine-tuning on Kinetics-400.
SMALL = Layout(features=384, depth=12, heads=6, drop_path=0.1)
BASE = Layout(features=768, depth=12, heads=12, drop_path=0.1)
LARGE = Layout(features=1024, depth=24, heads=16, drop_path=0.1)


def videomae_s() -> VideoMAE:
    """ViT-S: 22 M parameters, D = 384, t = L / 2."""
    return VideoMAE(SMALL)


def videomae_b() -> VideoMAE:
    """ViT-B: 86 M parameters, D = 768, t = L / 2."""
    return VideoMAE(BASE)


def videomae_l() -> VideoMAE:
    """ViT-L: 304 M parameters, D = 1024, t = L / 2."""
    return VideoMAE(LARGE)


def videomae_s_mmaction2() -> VideoMAE:
    """ViT-S as in mmaction2's feature map: videomae_s without the last norm."""
    return VideoMAE(replace(SMALL, norm=False))


def videomae_b_mmaction2() -> VideoMAE:
    """ViT-B as in mmaction2's feature map: videomae_b without the last norm."""
    return VideoMAE(replace(BASE, norm=False))


def videomae_l_mmaction2() -> VideoMAE:
    """ViT-L as in mmaction2's feature map: videomae_l without the last norm."""
    return VideoMAE(replace(LARGE, norm=False))
