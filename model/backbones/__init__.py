"""Backbones, one file per family: (n, C, L, H, W) float -> (n, D, t, h, w), and their names in settings."""

from __future__ import annotations

from collections.abc import Callable

from .backbone import Backbone
from .i3d import i3d
from .libraries import FOREIGN, is_foreign_name
from .named import build_named
from .r2plus1d import r2plus1d_18, r2plus1d_34, r2plus1d_tiny
from .slowfast import (
    slowfast_50,
    slowfast_50_mmaction2,
    slowfast_50_mmaction2_lateral_norm,
    slowfast_101,
    slowfast_101_mmaction2,
)
from .tsm import tsm_r18, tsm_r50
from .video_swin import video_swin_b, video_swin_s, video_swin_t
from .videomae import (
    videomae_b,
    videomae_b_mmaction2,
    videomae_l,
    videomae_l_mmaction2,
    videomae_s,
    videomae_s_mmaction2,
)

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "r2plus1d_tiny": r2plus1d_tiny,
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_34": r2plus1d_34,
    "i3d": i3d,
    "slowfast_50": slowfast_50,
    "slowfast_101": slowfast_101,
    "slowfast_50_mmaction2": slowfast_50_mmaction2,
    "slowfast_50_mmaction2_lateral_norm": slowfast_50_mmaction2_lateral_norm,
    "slowfast_101_mmaction2": slowfast_101_mmaction2,
    "tsm_r18": tsm_r18,
    "tsm_r50": tsm_r50,
    "video_swin_t": video_swin_t,
    "video_swin_s": video_swin_s,
    "video_swin_b": video_swin_b,
    "videomae_s": videomae_s,
    "videomae_b": videomae_b,
    "videomae_l": videomae_l,
    "videomae_s_mmaction2": videomae_s_mmaction2,
    "videomae_b_mmaction2": videomae_b_mmaction2,
    "videomae_l_mmaction2": videomae_l_mmaction2,
}

WITHOUT_RESIDUALS = frozenset({"i3d"})  # cannot be reversible


def check_backbone_name(name: str) -> str:
    """The name; ValueError for one that is neither ours nor formed as another library's. Looks nothing up."""
    if name not in BACKBONES and not is_foreign_name(name):
        raise ValueError(f"want one of {', '.join(BACKBONES)}, or {FOREIGN}")
    return name


def build_backbone(name: str, temporal: str = "shift") -> Backbone:
    """A backbone with fresh weights, plain (not rewired): of BACKBONES, or of another library.

    temporal: how another library's network for images sees motion, see encoder.temporal. Raises ValueError
    for a library or a network that is not there.
    """
    return BACKBONES[name]() if name in BACKBONES else build_named(name, temporal)
