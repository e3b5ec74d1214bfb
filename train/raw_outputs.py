"""Raw detector outputs in HDF5, so that post-processing can be redone without the model.

Layout: attributes `format`, `version`, `classes` and `meta` (JSON) at the root; under `windows`, one group
per window (000000, 000001, ...) with the attributes key, start, end, duration, num_steps and the float32
arrays of RawWindow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from pipeline.files import parse_json
from pipeline.hdf5 import attributes, member, open_hdf5, reading, writing
from pipeline.schemas import Count, Number, Table, Text, finite, validated
from pipeline.text import short
from train.postprocess import RawWindow

FORMAT, VERSION = "leantad-raw", 1
ARRAYS = ("segments", "quality", "class_scores", "boundary")


class RawWriter:
    """Writes windows into an open HDF5 file as they come; see raw_writer."""

    def __init__(
        self,
        file: h5py.File,
        reserve: Callable[[int], None],
        *,
        classes: Sequence[str],
        metadata: Mapping[str, Any],
    ):
        self.num_classes, self.count, self.reserve = len(classes), 0, reserve
        file.attrs.update({"format": FORMAT, "version": VERSION, "meta": json.dumps(dict(metadata))})
        # A data set, not an attribute: HDF5 attributes end at 64 KiB, and 1,000 class names may be longer.
        file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
        self.windows = file.create_group("windows")

    def add(self, window: RawWindow) -> None:
        """Append one window; ValueError if its arrays do not fit together."""
        arrays = {name: np.asarray(getattr(window, name), dtype=np.float32) for name in ARRAYS}
        check_shapes(arrays, window.num_steps, self.num_classes, where=f"raw output of {window.key!r}")
        self.reserve(sum(array.nbytes for array in arrays.values()))
        group = self.windows.create_group(f"{self.count:06d}")
        start, end = window.window
        group.attrs.update({"key": window.key, "start": start, "end": end})
        group.attrs.update({"duration": window.duration, "num_steps": window.num_steps})
        for name, array in arrays.items():
            packing = {"compression": "lzf", "shuffle": True} if array.size else {}
            group.create_dataset(name, data=array, **packing)
        self.count += 1


@contextmanager
def raw_writer(
    path: str | Path, *, classes: Sequence[str], metadata: Mapping[str, Any]
) -> Iterator[RawWriter]:
    """A RawWriter whose file takes the name `path` when the block ends, and is removed if it fails."""
    with writing(Path(path)) as (file, reserve):
        yield RawWriter(file, reserve, classes=classes, metadata=metadata)


def check_shapes(arrays: Mapping[str, Any], num_steps: int, num_classes: int, *, where: str) -> None:
    """ValueError unless the four arrays are (P, 2), (P,), (P, K) and (2, T)."""
    got = {name: tuple(arrays[name].shape or ()) for name in ARRAYS}  # None: HDF5 has an empty kind
    count = got["quality"][0] if got["quality"] else 0
    want = {
        "segments": (count, 2),
        "quality": (count,),
        "class_scores": (count, num_classes),
        "boundary": (2, num_steps),
    }
    if got != want:
        raise ValueError(f"{where}: got shapes {got}, want {want}")


def write_raw(
    path: str | Path, windows: Iterable[RawWindow], *, classes: Sequence[str], metadata: Mapping[str, Any]
) -> int:
    """Write all windows; returns how many."""
    with raw_writer(path, classes=classes, metadata=metadata) as writer:
        for window in windows:
            writer.add(window)
    return writer.count


AGAIN = "write it again with --raw"
MOST_NUMBERS = 1 << 26  # in one array: 256 MiB, 100 times what the largest recipe writes for a window
MOST_CLASSES = 1 << 16


def _open(path: str | Path) -> h5py.File:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, want the HDF5 file that `leantad eval --raw` wrote")
    return open_hdf5(Path(path), kind=FORMAT, version=VERSION, advice=AGAIN)


def read_raw_header(path: str | Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The class names and the metadata that the file was written with."""
    with _open(path) as file:
        text = attributes(file, ["meta"], path, AGAIN).get("meta")
        if not isinstance(text, str):
            raise ValueError(f"{path}: has no metadata; {AGAIN}")
        metadata = validated(_METADATA, parse_json(text, where=path), where=f"{path}: metadata", advice=AGAIN)
        return _classes(file, path), dict(metadata)


@with_config(ConfigDict(extra="allow"))
class _Metadata(TypedDict, total=False):
    """The metadata, as far as others than their writer look into them."""

    subset: Text
    videos: dict[Text, Table] | list[Text]
    rejected: dict[Text, Text]
    post: Table


_METADATA = TypeAdapter(Annotated[_Metadata, BeforeValidator(finite)])


def _classes(file: h5py.File, path: str | Path) -> tuple[str, ...]:
    stored = member(file, "classes", h5py.Dataset, path, AGAIN)
    with reading(path, AGAIN):
        if len(stored.shape) != 1 or not 0 < stored.shape[0] <= MOST_CLASSES:
            raise ValueError(f"got class names of shape {stored.shape}")
        return tuple(stored.asstr()[()])


def read_raw(path: str | Path) -> Iterator[RawWindow]:
    """The windows in the order they were written, those of a video one after another.

    ValueError naming the window if one is damaged, and the video if its windows are not together.
    """
    with _open(path) as file:
        num_classes = len(_classes(file, path))
        windows = member(file, "windows", h5py.Group, path, AGAIN)
        with reading(path, AGAIN):
            names = sorted(windows)
        key, complete = None, set[str | None]()
        for name in names:
            where = f"{path}, window {short(name, quoted=False)}"
            window = _read_window(member(windows, name, h5py.Group, where, AGAIN), num_classes, where)
            if window.key != key:
                complete.add(key)
                key = window.key
            if key in complete:
                raise ValueError(f"{path}: windows of {short(key)} are not together; {AGAIN}")
            yield window


@dataclass(frozen=True)
class _WindowHeader:
    """The attributes of a window's group."""

    key: Text
    start: Number
    end: Number
    duration: Annotated[Number, Field(gt=0)]
    num_steps: Annotated[Count, Field(ge=1, le=1 << 20)]


_HEADER = TypeAdapter(_WindowHeader)


def _read_window(group: h5py.Group, num_classes: int, where: str) -> RawWindow:
    names = [field.name for field in fields(_WindowHeader)]
    header = validated(_HEADER, attributes(group, names, where, AGAIN), where=where, advice=AGAIN)
    stored = {name: member(group, name, h5py.Dataset, where, AGAIN) for name in ARRAYS}
    check_shapes(stored, header.num_steps, num_classes, where=where)
    arrays = {}
    for name, array in stored.items():
        with reading(f"{where}, {name}", AGAIN):
            if array.dtype.kind != "f" or array.size > MOST_NUMBERS:
                raise ValueError(f"{array.size} values of {array.dtype}, want numbers")
            arrays[name] = array[()].astype(np.float32, copy=False)
    return RawWindow(
        key=header.key,
        window=(header.start, header.end),
        duration=header.duration,
        num_steps=header.num_steps,
        **arrays,
    )
