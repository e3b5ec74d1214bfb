"""Reads safetensors files; a damaged one is refused by name."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU. ValueError if it is cut, or is no safetensors file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error}); use another one") from None
