"""Backbones, one file per family: (n, C, L, H, W) -> (n, D, t, h, w)."""
