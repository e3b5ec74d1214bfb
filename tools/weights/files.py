"""Reads the tensors of other projects' checkpoints; nothing in a file is executed (weights_only=True)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.text import counted, first_names, suggestion
from tools.weights.pickled import Unread, read_pickled, strings_in
from train.checkpoint import read_safetensors
from train.model_file import read_model_file

# Where the tensors lie; averaged weights are what their authors evaluate.
WRAPPERS = ("state_dict_ema", "state_dict", "model_state", "model_state_dict", "model", "module", "blobs")
BEGINNINGS = (b"PK", b"\x80")  # of a zip, as torch and numpy write, and of a pickle, as Caffe2 does
WANTED = "want a checkpoint (.pt, .pth, .bin, .pkl, .safetensors, .npz, .leantad)"


@dataclass(frozen=True)
class ReadCheckpoint:
    """The tensors of a checkpoint by name.

    key: where in the file they lay, such as "state_dict_ema"; empty: by themselves. others: where it has
    further ones. unread: how many objects beside tensors and plain values, such as an argparse.Namespace,
    were left unread.
    """

    tensors: dict[str, Tensor]
    key: str = ""
    others: tuple[str, ...] = ()
    unread: int = 0

    def remark(self) -> str | None:
        """What a person should know of the choice, in a line; None: there was none."""
        parts = []
        if self.others:
            what = "averaged weights, " if self.key.endswith("_ema") else ""
            parts.append(f"{what}{self.key!r}, not {first_names(self.others)} (--key chooses)")
        if self.unread:
            parts.append(f"{counted(self.unread, 'object')} beside the tensors left unread")
        return f"took {'; '.join(parts)}" if self.others else "; ".join(parts) or None


def read_checkpoint(path: Path, key: str | None = None) -> ReadCheckpoint:
    """The tensors of a checkpoint: .safetensors, .npz, .leantad, or what torch.save wrote, unwrapped.

    key: which of the file's dicts to take; None: the first of `WRAPPERS` that it has. Raises ValueError if
    the file is none of these, is damaged, lacks the key, or would have to run code to be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {WANTED}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty; get the file again")
    if path.suffix in (".safetensors", ".leantad"):
        if key is not None:
            raise ValueError(f"--key {key}: {path} holds tensors alone, under no key; leave it out")
        ours = path.suffix == ".leantad"
        return ReadCheckpoint(read_model_file(path).tensors if ours else read_safetensors(path))
    _check_beginning(path)
    try:
        content = _read_npz(path) if path.suffix == ".npz" else read_pickled(path)
    except UnpicklingError as error:
        raise ValueError(_more_than_tensors(path, str(error))) from None
    except Exception as error:  # whatever numpy, zipfile and torch meet in damaged bytes
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: damaged, or no checkpoint ({reason}); {WANTED}") from None
    return _tensors_in(content, path, key)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_checkpoint` alone."""
    return read_checkpoint(path).tensors


def float32_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float32, others as they are; each in memory of its own, to be written."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in tensors.items()
    }


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(12)
    if not begin.startswith(BEGINNINGS):
        raise ValueError(f"{path}: is no checkpoint, it begins with {begin!r}; {WANTED}")


def _read_npz(path: Path) -> dict[str, Any]:
    # numpy leaves a damaged file open if it opened it
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _more_than_tensors(path: Path, reason: str) -> str:
    """The message for a file that would have to run code; it names the key under which its tensors lie."""
    try:
        found = set(strings_in(path)) & set(WRAPPERS)
    except (OSError, zipfile.BadZipFile):
        found = set()
    keys = [name for name in WRAPPERS if name in found]
    what = f"checkpoint[{keys[0]!r}]" if keys and keys[0] != "blobs" else "its state_dict"
    where = f" (it has {first_names(keys)})" if keys else ""
    return (
        f"{path}: holds more than tensors, to be read by running code ({reason}); load it where it comes "
        f"from and save the tensors alone{where}: torch.save({what}, ...), or, of Caffe2, "
        "numpy.savez(..., **blobs)"
    )


def _tensors_in(content: Any, path: Path, key: str | None) -> ReadCheckpoint:
    """The tensors of the dict that holds them: `key`'s, or below `WRAPPERS`."""
    unread = sum(isinstance(value, Unread) for value in _nested(content))
    taken: list[str] = []
    others: list[str] = []
    while isinstance(content, Mapping) and len(taken) < 8:
        inner = [name for name in WRAPPERS if _has_tensors(content.get(name))]
        if key is not None and not taken:
            inner = [_checked_key(content, path, key), *(name for name in inner if name != key)]
        if not inner:
            break
        others += inner[1:]
        taken.append(inner[0])
        content = content[inner[0]]
    values = content if isinstance(content, Mapping) else {}
    tensors = {
        str(name): torch.as_tensor(value)
        for name, value in values.items()
        if isinstance(value, Tensor | np.ndarray)
    }
    if not tensors:
        arrays = f" ({counted(unread, 'object')} in it, perhaps numpy arrays, left unread)" if unread else ""
        raise ValueError(
            f"{path}: holds no tensors by name{arrays}; want a state_dict, alone or under "
            f"{', '.join(WRAPPERS)}"
        )
    return ReadCheckpoint(tensors, ".".join(taken), tuple(others), unread)


def _checked_key(content: Mapping[Any, Any], path: Path, key: str) -> str:
    """The key, if tensors lie under it; else ValueError with those under which some do."""
    known = [str(name) for name, value in content.items() if _has_tensors(value)]
    if key not in known:
        raise ValueError(f"--key {key}: {path} has no tensors there; {suggestion(key, known)}")
    return key


def _has_tensors(value: Any) -> bool:
    """Whether it is a dict with tensors in it, at whatever depth."""
    return isinstance(value, Mapping) and any(isinstance(one, Tensor | np.ndarray) for one in _nested(value))


def _nested(content: Any) -> Iterator[Any]:
    """All values in dicts, lists and tuples, each once: a pickle may hold a list in itself."""
    seen, left = set(), [content]
    while left:
        value = left.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            if isinstance(value, Mapping):
                left.extend(value.values())
            elif isinstance(value, list | tuple):
                left.extend(value)
