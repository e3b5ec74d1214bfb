"""The encoder of a checkpoint of ours, for another run: checkpoints/best/model.safetensors."""

from __future__ import annotations

from torch import Tensor

from .renaming import rename

ENCODER, DETECTOR = "encoder.backbone.", "detector."


def from_checkpoint(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a trained network, encoder and detector, in our names of the encoder alone."""
    return rename(weights, lambda name: None if name.startswith(DETECTOR) else name.removeprefix(ENCODER))
