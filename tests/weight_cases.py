"""Lists of published checkpoint keys as weights without values, and what our backbones hold."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from model.backbones import build_backbone


def published(shared_real: Path, file: str) -> dict[str, Tensor]:
    """The checkpoint of a list of names, shapes and dtypes, on the meta device."""
    keys = json.loads((shared_real / "keys" / file).read_text())["keys"]
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, shape, dtype in keys
    }


def own_tensors(backbone: str) -> dict[str, Tensor]:
    """The backbone's tensors, on the meta device."""
    with torch.device("meta"):
        return build_backbone(backbone).state_dict()


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """{name: shape}."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
