"""Backbones, one file per family: (n, C, L, H, W) float -> (n, D, t, h, w); `pool` makes (n, D, t) of it."""

from __future__ import annotations

from difflib import get_close_matches

from .r2plus1d import R2Plus1D, r2plus1d_18, r2plus1d_34, r2plus1d_tiny
from .slowfast import (
    SlowFast,
    slowfast_50,
    slowfast_50_mmaction2,
    slowfast_50_mmaction2_lateral_norm,
    slowfast_101,
    slowfast_101_mmaction2,
)
from .tsm import TSM, tsm_r18, tsm_r50
from .video_swin import VideoSwin, video_swin_b, video_swin_s, video_swin_t
from .videomae import (
    VideoMAE,
    videomae_b,
    videomae_b_mmaction2,
    videomae_l,
    videomae_l_mmaction2,
    videomae_s,
    videomae_s_mmaction2,
)

Backbone = R2Plus1D | SlowFast | TSM | VideoSwin | VideoMAE

BACKBONES = {
    "r2plus1d_tiny": r2plus1d_tiny,
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_34": r2plus1d_34,
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


def build_backbone(name: str) -> Backbone:
    """A backbone with fresh weights, plain (not rewired); its `num_features` is D.

    Raises ValueError if the name is not one of BACKBONES.
    """
    if name not in BACKBONES:
        near = get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backbone: got {name!r}, want one of {', '.join(BACKBONES)}{hint}")
    return BACKBONES[name]()
