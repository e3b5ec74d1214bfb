"""Reads the tensors of other projects' checkpoints; nothing in a file is executed (weights_only=True)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.checkpoint import read_safetensors
from train.model_file import read_model_file

WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "module", "blobs")
BEGINNINGS = (b"PK", b"\x80")  # of a zip, as torch and numpy write, and of a pickle, as Caffe2 does
WANTED = "want a checkpoint (.pt, .pth, .bin, .pkl, .safetensors, .npz, .leantad)"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: .safetensors, .npz, .leantad, or what torch.save wrote, unwrapped.

    Raises ValueError if the file is none of these, is damaged, or would have to run code to be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {WANTED}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty; get the file again")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".leantad":
        return read_model_file(path).tensors
    _check_beginning(path)
    try:
        content = _read_npz(path) if path.suffix == ".npz" else _read_pickled(path)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than tensors, to be read by running code ({_reason(error)}); load it where "
            "it comes from and save its state_dict alone: torch.save(checkpoint['state_dict'], ...), or, of "
            "Caffe2, numpy.savez(..., **blobs)"
        ) from None
    except Exception as error:  # whatever numpy, zipfile and torch meet in damaged bytes
        raise ValueError(f"{path}: damaged, or no checkpoint ({_reason(error)}); {WANTED}") from None
    return _tensors_in(content, path)


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(12)
    if not begin.startswith(BEGINNINGS):
        raise ValueError(f"{path}: is no checkpoint, it begins with {begin!r}; {WANTED}")


def _read_npz(path: Path) -> dict[str, Any]:
    # numpy leaves a damaged file open if it opened it
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_pickled(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of in a pickle is in its error as well
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """The reason alone: around it, torch explains how to load a file unsafely."""
    text = " ".join(str(error).split())
    return text.partition("WeightsUnpickler error: ")[2].partition(". ")[0] or text[:120]


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of the dict that holds them, below `WRAPPERS`."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {
        str(name): torch.as_tensor(value)
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor | np.ndarray)
    }
    if not tensors:
        raise ValueError(
            f"{path}: holds no tensors by name; want a state_dict, alone or under {', '.join(WRAPPERS)}"
        )
    return tensors
