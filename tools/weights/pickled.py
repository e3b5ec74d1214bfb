"""Reads what torch.save wrote, tensors alone: nothing in a file is executed, whatever stands beside them.

torch.load reads a pickle with weights_only=True: it calls nothing but what rebuilds tensors and plain values.
Checkpoints often hold a little more, as TSP's their argparse.Namespace and numpy's scalars: in `HARMLESS` are
the names of such things, and in their place comes an `Unread`, which reads nothing. A file that names
anything else is refused.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles
from typing import IO, Any

import torch

LONGEST_SCAN = 1 << 26  # bytes of a pickle that are read for an error message
NUMPY = ("scalar", "_reconstruct")
PATHS = ("PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath")
TIMES = ("datetime", "date", "time", "timedelta", "timezone")
# What stands beside the tensors of published checkpoints, by its name in the pickle.
HARMLESS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in NUMPY),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *(f"datetime.{name}" for name in TIMES),
    "uuid.UUID",
)


class Unread:
    """What stands in a checkpoint beside its tensors and is not read: it takes anything and keeps nothing."""

    def __new__(cls, *_arguments: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any):
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def read_pickled(path: Path) -> Any:
    """What torch.save wrote, with an `Unread` for each harmless thing that is neither tensor nor plain value.

    Raises UnpicklingError, its text the reason alone, for a file that would have to run code to be read.
    """
    try:
        return _load(path)
    except UnpicklingError as error:
        first = error
    try:
        with torch.serialization.safe_globals([(Unread, name) for name in HARMLESS]):
            return _load(path)
    except UnpicklingError as error:
        raise UnpicklingError(_reason(error)) from None
    except Exception:  # no file of torch.save: the first error says what it is
        raise UnpicklingError(_reason(first)) from None


def strings_in(path: Path) -> Iterator[str]:
    """The strings in the pickles of a file, in their order, as far as they can be read; for a message."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            for name in names[:1]:
                with archive.open(name) as file:
                    yield from _strings(file)
    else:
        with path.open("rb") as file:
            yield from _strings(file)


def _strings(file: IO[bytes]) -> Iterator[str]:
    try:
        while file.tell() < LONGEST_SCAN:
            for operation, value, _ in pickletools.genops(file):
                if isinstance(value, str) and "UNICODE" in operation.name:
                    yield value
    except (ValueError, UnicodeError, OSError):  # what is behind the last pickle is no pickle
        return


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of in a pickle is in its error as well
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """The reason alone: around it, torch explains how to load a file unsafely."""
    text = " ".join(str(error).split())
    return text.partition("WeightsUnpickler error: ")[2].partition(". ")[0] or text[:120]
