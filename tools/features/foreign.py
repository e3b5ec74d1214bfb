"""Reads the features of other projects: a file a video (.npy, .npz, .pt, .csv), or one HDF5 file of all.

Nothing in a file is executed: numpy reads without pickles, torch tensors alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.hdf5 import DAMAGED, member, reading
from pipeline.text import first_names, short

PREFERRED = ("feats", "features", "feature")  # the array of several in one file
HDF5 = (".h5", ".hdf5")
AGAIN = "get the file again"


@dataclass(frozen=True)
class ForeignFile:
    """The features of one video: a file, or a member of an HDF5 file."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}, {self.member}"

    def read(self) -> NDArray[Any]:
        """The array, two-dimensional once axes of length 1 are gone. ValueError naming the file."""
        try:
            array = _read_hdf5(self) if self.member else _READERS[self.path.suffix.lower()](self)
        except UnpicklingError:
            raise ValueError(
                f"{self}: holds more than tensors, to be read by running code; save the tensor alone"
            ) from None
        except (*DAMAGED, OSError, EOFError, ValueError) as error:
            raise ValueError(f"{self}: cannot be read ({short(error, 150)}); {AGAIN}") from None
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{self}: got {array.dtype} numbers, want features, real numbers")
        return two_axes(array, where=self)


def two_axes(array: NDArray[Any], *, where: object) -> NDArray[Any]:
    """The array without axes of length 1, but for two; ValueError if more are left, or one is empty."""
    shape = array.shape
    while array.ndim > 2 and 1 in array.shape:
        array = array.squeeze(array.shape.index(1))
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{where}: got an array {shape}, want time and channels, none empty")
    return array


def find_features(folder: Path) -> dict[str, ForeignFile]:
    """The features that lie in a folder (at any depth), or in an HDF5 file, by the name of the video.

    ValueError if there are none, or two of one name.
    """
    if folder.is_file() and folder.suffix.lower() in HDF5:
        return _members(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; want one with features, or an HDF5 file (.h5) of all")
    found: dict[str, ForeignFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() in _READERS and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem]} has the same name; want a file a video")
            found[path.stem] = ForeignFile(path)
    if not found:
        raise ValueError(f"{folder}: no features in it, want files ending in {', '.join(sorted(_READERS))}")
    return found


def _members(path: Path) -> dict[str, ForeignFile]:
    with reading(path, AGAIN), h5py.File(path, "r") as file:
        names = list(file)
    return {name: ForeignFile(path, name) for name in names}


def _the_array(arrays: Mapping[str, Any]) -> Any:
    """The only array, or the one with a usual name; ValueError if neither."""
    chosen = next((name for name in PREFERRED if name in arrays), None)
    if chosen is None and len(arrays) == 1:
        chosen = next(iter(arrays))
    if chosen is None:
        raise ValueError(
            f"arrays {first_names(list(arrays))} in it, want one, or one named {', '.join(PREFERRED)}"
        )
    return arrays[chosen]


def _read_npy(file: ForeignFile) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file.path, allow_pickle=False)
    return array


def _read_npz(file: ForeignFile) -> NDArray[Any]:
    with file.path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return np.asarray(_the_array(arrays))


def _read_torch(file: ForeignFile) -> NDArray[Any]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged bytes; what comes of them is one line
        content = torch.load(file.path, map_location="cpu", weights_only=True)
    tensor = _the_array(content) if isinstance(content, dict) else content
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"a {type(tensor).__name__} in it, want a tensor")
    return np.asarray(tensor.detach().float().numpy())


def _read_csv(file: ForeignFile) -> NDArray[Any]:
    lines = file.path.read_text(encoding="utf-8-sig").splitlines()
    first = lines[0].split(",") if lines else []
    try:
        header = not [float(cell) for cell in first]
    except ValueError:
        header = True
    if len(lines) > 1 and first == [str(number) for number in range(len(first))]:
        header = True  # as pandas numbers the columns
    return np.loadtxt(lines, delimiter=",", skiprows=int(header), ndmin=2, dtype=np.float32, comments=None)


def _read_hdf5(file: ForeignFile) -> NDArray[Any]:
    assert file.member is not None, "a member"
    with h5py.File(file.path, "r") as opened:
        if isinstance(opened.get(file.member), h5py.Group):
            group = member(opened, file.member, h5py.Group, file, AGAIN)
            inner = {name: name for name in group}
            return np.asarray(member(group, _the_array(inner), h5py.Dataset, file, AGAIN)[()])
        return np.asarray(member(opened, file.member, h5py.Dataset, file, AGAIN)[()])


_READERS: dict[str, Callable[[ForeignFile], NDArray[Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".csv": _read_csv,
}
