"""EfficientNet-Lite0 as a named backbone, converted, against the outputs of the package that published it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from golden_check import Check, compare
from safetensors import safe_open
from safetensors.torch import load_file

from model.backbones import build_backbone
from tools.weights.matching import best_match

GOLDEN, WEIGHTS = "efficientnet_lite0_golden.safetensors", "efficientnet_lite0_imagenet.safetensors"
# Its convolutions pad as TensorFlow's; timm:efficientnet_lite0 pads on both sides alike.
NAME = "timm:tf_efficientnet_lite0"


def check_efficientnet(folder: Path) -> Iterator[Check]:
    """Features of a frame and class scores of the inputs that the file's metadata describes; wants timm."""
    with safe_open(folder / GOLDEN, "pt") as file:
        recipe = file.metadata()["input"]
    rate = re.search(r"cos\(([\d.]+)\s*\*\s*i\)", recipe)
    if rate is None:
        raise ValueError(f"{GOLDEN}: got an input {recipe!r}, want cos(RATE*i)")
    golden, published = load_file(folder / GOLDEN), load_file(folder / WEIGHTS)
    backbone = build_backbone(NAME, "mean").eval()
    matched = best_match(published, backbone=NAME, source=None)
    backbone.weighted.load_state_dict(matched.tensors)
    for size in (128, 224):
        numbers = torch.arange(3 * size * size, dtype=torch.float64)
        x = torch.cos(float(rate[1]) * numbers).float().view(1, 3, 1, size, size)
        with torch.no_grad():
            y = backbone(x)  # (1, D, 1, h, w)
        if f"features{size}" in golden:
            yield compare(f"features{size}", y[:, :, 0], golden[f"features{size}"])
        logits = backbone.pool(y)[:, :, 0] @ published["_fc.weight"].T + published["_fc.bias"]
        yield compare(f"logits{size}", logits, golden[f"logits{size}"])
