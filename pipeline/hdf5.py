"""Writes HDF5 files; opens those that may be damaged or somebody else's, with a ValueError of one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from .files import replacing
from .text import short

Member = TypeVar("Member", h5py.Dataset, h5py.Group)

SPARE_BYTES = 4 << 20  # of an open file: what HDF5 writes beside the arrays, and holds back

# Of file systems that cannot reserve room, where the C library does not do it by hand
NO_RESERVING = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

# What h5py raises for a file whose structure is damaged, besides ValueError and OSError.
DAMAGED = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, RuntimeError, TypeError)


@contextmanager
def writing(path: Path) -> Iterator[tuple[h5py.File, Callable[[int], None]]]:
    """A new HDF5 file, whole or not at all, and what reserves room on the disk for so many bytes.

    Reserve before you write: where a write fails, HDF5 crashes the process; where no room is left, the second
    raises OSError, and the file goes.
    """
    with replacing(path) as partial:
        with h5py.File(partial, "w") as file:
            reserved = 0

            def reserve(num_bytes: int) -> None:
                nonlocal reserved
                end = file.id.get_filesize() + num_bytes + SPARE_BYTES
                if end <= reserved:
                    return
                try:
                    os.posix_fallocate(file.id.get_vfd_handle(), reserved, end - reserved)
                except OSError as error:
                    if error.errno in NO_RESERVING:
                        return
                    raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
                reserved = end

            reserve(0)
            yield file, reserve
            file.flush()
            size = file.id.get_filesize()
        os.truncate(partial, size)


@contextmanager
def reading(where: object, advice: str) -> Iterator[None]:
    """What h5py raises within becomes a ValueError that names `where` and says what to do."""
    try:
        yield
    except (*DAMAGED, ValueError, OSError) as error:
        raise ValueError(f"{where}: cannot be read ({short(error, 150)}); {advice}") from None


def open_hdf5(path: Path, *, kind: str, version: int, advice: str) -> h5py.File:
    """The open file, whose attributes `format` and `version` are those; ValueError otherwise."""
    try:
        file = h5py.File(path, "r")
    except (*DAMAGED, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({short(error, 150)}); {advice}") from None
    try:
        found = attributes(file, ("format", "version"), path, advice)
        if found != {"format": kind, "version": version}:
            raise ValueError(f"{path}: not a {kind} file of version {version}; {advice}")
    except ValueError:
        file.close()
        raise
    return file


def attributes(node: h5py.Group, names: Sequence[str], where: object, advice: str) -> dict[str, Any]:
    """Attributes as plain values; those that are not there are left out."""
    with reading(where, advice):
        found = {name: node.attrs[name] for name in names if name in node.attrs}
        return {
            name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()
        }


def member(group: h5py.Group, name: str, kind: type[Member], where: object, advice: str) -> Member:
    """The member, which must lie in this very file: HDF5 can point into other files, and we do not follow."""
    with reading(where, advice):
        found = group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
            found = None
    if not isinstance(found, kind):
        raise ValueError(
            f"{where}: {name} is missing or lies in another file, or is no {kind.__name__}; {advice}"
        )
    return found
