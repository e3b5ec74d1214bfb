"""Raw detector outputs in HDF5, so that post-processing can be redone without the model.

Layout: attributes `format`, `version`, `classes` and `meta` (JSON) at the root; under `windows`, one group
per window (000000, 000001, ...) with the attributes key, start, end, duration, num_steps and the float32
arrays of RawWindow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.files import parse_json, replacing
from train.postprocess import RawWindow

FORMAT, VERSION = "leantad-raw", 1
ARRAYS = ("segments", "quality", "class_scores", "boundary")


class RawWriter:
    """Writes windows into an open HDF5 file as they come; see raw_writer."""

    def __init__(self, file: h5py.File, *, classes: Sequence[str], metadata: Mapping[str, Any]):
        self.num_classes, self.count = len(classes), 0
        file.attrs.update({"format": FORMAT, "version": VERSION, "meta": json.dumps(dict(metadata))})
        # A data set, not an attribute: HDF5 attributes end at 64 KiB, and 1,000 class names may be longer.
        file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
        self.windows = file.create_group("windows")

    def add(self, window: RawWindow) -> None:
        """Append one window; ValueError if its arrays do not fit together."""
        arrays = {name: np.asarray(getattr(window, name), dtype=np.float32) for name in ARRAYS}
        check_shapes(arrays, window.num_steps, self.num_classes, where=f"raw output of {window.key!r}")
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
    with replacing(Path(path)) as partial, h5py.File(partial, "w") as file:
        yield RawWriter(file, classes=classes, metadata=metadata)


def check_shapes(arrays: Mapping[str, Any], num_steps: int, num_classes: int, *, where: str) -> None:
    """ValueError unless the four arrays are (P, 2), (P,), (P, K) and (2, T)."""
    got = {name: tuple(arrays[name].shape) for name in ARRAYS}
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


def _open(path: str | Path) -> h5py.File:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, want the HDF5 file that `leantad eval --raw` wrote")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({error}); write it again with --raw") from None
    if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
        file.close()
        raise ValueError(f"{path}: not a {FORMAT} file of version {VERSION}; write it again with --raw")
    return file


def _local_member(group: h5py.Group, name: str, where: str) -> Any:
    """The member, which must lie in this very file: HDF5 can point into other files, and we do not follow."""
    member = group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
        member = None
    if member is None:
        raise ValueError(f"{where}: {name} is missing or lies in another file; write it again with --raw")
    return member


def read_raw_header(path: str | Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The class names and the metadata that the file was written with."""
    with _open(path) as file:
        return _classes(file, path), dict(parse_json(str(file.attrs["meta"]), where=path))


def _classes(file: h5py.File, path: str | Path) -> tuple[str, ...]:
    return tuple(_local_member(file, "classes", str(path)).asstr()[()])


def read_raw(path: str | Path) -> Iterator[RawWindow]:
    """The windows in the order they were written, those of a video one after another.

    ValueError naming the window if one is damaged, and the video if its windows are not together.
    """
    with _open(path) as file:
        num_classes = len(_classes(file, path))
        windows = _local_member(file, "windows", str(path))
        key, complete = None, set[str | None]()
        for name in sorted(windows):
            where = f"{path}, window {name}"
            window = _read_window(_local_member(windows, name, where), num_classes, where)
            if window.key != key:
                complete.add(key)
                key = window.key
            if key in complete:
                raise ValueError(f"{path}: windows of {key!r} are not together; write it again with --raw")
            yield window


def _read_window(group: h5py.Group, num_classes: int, where: str) -> RawWindow:
    try:
        start, end, duration = (float(group.attrs[name]) for name in ("start", "end", "duration"))
        key, num_steps = str(group.attrs["key"]), int(group.attrs["num_steps"])
        stored = {name: _local_member(group, name, where) for name in ARRAYS}
        check_shapes(stored, num_steps, num_classes, where=where)
        arrays = {name: stored[name][()].astype(np.float32, copy=False) for name in ARRAYS}
    except (KeyError, OSError, TypeError) as error:
        raise ValueError(f"{where}: cannot be read ({error}); write it again with --raw") from None
    return RawWindow(key=key, window=(start, end), duration=duration, num_steps=num_steps, **arrays)
