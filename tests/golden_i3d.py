"""I3D against an independent forward pass with the published weights, which lie beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from golden_check import Check, compare
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from model.backbones import build_backbone
from tools.weights.matching import best_match

GOLDEN, WEIGHTS = "i3d_golden.safetensors", "i3d_kinetics400_rgb.safetensors"
CLASSIFIER = "params|Logits/Conv3d_0c_1x1|Conv_0|"


def check_i3d(folder: Path) -> Iterator[Check]:
    """Features and class scores of the inputs that the file's metadata describes."""
    with safe_open(folder / GOLDEN, "pt") as file:
        recipe = file.metadata()["input"]
    rate = re.search(r"cos\(([\d.]+)\s*\*\s*i\)", recipe)
    shapes = re.findall(r"(\d+)x(\d+)x(\d+)", recipe)
    if rate is None or not shapes:
        raise ValueError(f"{GOLDEN}: got an input {recipe!r}, want cos(RATE*i) and shapes LxHxW")
    golden, published = load_file(folder / GOLDEN), load_file(folder / WEIGHTS)
    network = build_backbone("i3d").eval()
    network.load_state_dict(best_match(published, backbone="i3d", source=None).tensors)
    kernel, bias = published[f"{CLASSIFIER}kernel"].flatten(0, 3), published[f"{CLASSIFIER}bias"]
    for case, shape in enumerate(tuple(map(int, shape)) for shape in shapes):
        numbers = torch.arange(3 * shape[0] * shape[1] * shape[2], dtype=torch.float64)
        x = torch.cos(float(rate[1]) * numbers).float().view(1, 3, *shape)
        with torch.no_grad():
            y = network(x)
        yield compare(f"case{case}.mixed_5c", y, golden[f"case{case}.mixed_5c"])
        # Mean over time of means over two steps and the picture: both are linear
        pooled = F.avg_pool3d(y, (2, *y.shape[3:]), 1).flatten(2).mean(2)
        yield compare(f"case{case}.logits", pooled @ kernel + bias, golden[f"case{case}.logits"])
