"""Backbones, one file per family: (n, C, L, H, W) float -> (n, D, t, h, w), and their names in settings."""

from __future__ import annotations

from collections.abc import Callable

from .backbone import Backbone
from .i3d import i3d
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


def build_backbone(name: str) -> Backbone:
    """A backbone of BACKBONES with fresh weights, plain (not rewired)."""
    return BACKBONES[name]()
