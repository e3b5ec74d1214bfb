"""Checkpoints of timm, torchvision and Hugging Face for the library's own network, whose names they have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .renaming import rename

ENCODER = "encoder.backbone.network."


def from_library(weights: dict[str, Tensor], *, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names as they are, without the first part (`module.`, `vit.`) if so they are the network's.

    own: the network's tensors, by name.
    """
    beginnings = {"", *(f"{name.partition('.')[0]}." for name in weights)}
    prefix = max(sorted(beginnings), key=lambda begin: sum(f"{begin}{name}" in weights for name in own))
    return rename(weights, lambda name: name.removeprefix(prefix))


def from_checkpoint(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a trained network of ours in the library's names, without the detector's."""
    return rename(weights, lambda name: name.removeprefix(ENCODER) if name.startswith(ENCODER) else None)
