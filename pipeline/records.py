"""Entries of dataset.json as dataclasses, and the reader of a tar's index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .annotations import Action

FORMAT, VERSION = "leantad-dataset", 1
DESCRIPTION = "dataset.json"
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PackedVideo:
    """One video of a data set. duration in seconds, fps in frames per second, width and height in pixels.

    A rejected video has shard None, the reason in reject, num_frames 0, and its annotated duration (None:
    unknown). source is the name in the annotations, codec the short name PyAV gives it, sha256 that of the
    encoded bytes, pix_fmt FFmpeg's name of the pixels' layout (None: packed before it was recorded).
    """

    key: str
    subset: str
    duration: float | None
    fps: float
    num_frames: int
    width: int
    height: int
    codec: str
    actions: tuple[Action, ...]
    shard: str | None
    reject: str | None
    source: str
    sha256: str | None = None
    file: str | None = None
    pix_fmt: str | None = None

    @property
    def name(self) -> str:
        """For messages: the key, and the name in the annotations where that is another."""
        return self.key if self.source == self.key else f"{self.key} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """The entry in dataset.json, and the `<key>.json` in the tar."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("key", "actions")}
        actions = [{"segment": [action.start, action.end], "label": action.label} for action in self.actions]
        return {**fields, "actions": actions}

    @staticmethod
    def from_json(key: str, entry: dict[str, Any]) -> PackedVideo:
        """Raises KeyError or TypeError when the entry is not one that to_json wrote."""
        fields = dict(entry)
        actions = tuple(_action_of(item) for item in fields.pop("actions"))
        return PackedVideo(key=key, actions=actions, **fields)


def _action_of(item: dict[str, Any]) -> Action:
    segment: tuple[float, float] = item["segment"]
    return Action(*segment, item["label"])


class EncodedFrames(NamedTuple):
    """The part of an encoded video that some frames need.

    data: encoded bytes. frames: the numbers of the frames in `data`. num_frames: how many frames it holds.
    """

    data: bytes
    frames: NDArray[np.int64]
    num_frames: int


class VideoSource(Protocol):
    """What training, evaluation and prediction read videos from: a data set, or one file (prepare.py)."""

    @property
    def classes(self) -> Sequence[str]: ...

    def packed(self, subset: str) -> list[PackedVideo]: ...

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames: ...


@dataclass(frozen=True)
class Shard:
    """One complete tar: file names, sha256 and size in bytes of the tar, number of videos in it."""

    file: str
    index: str
    sha256: str
    bytes: int
    samples: int


def read_index(path: str | Path) -> dict[str, tuple[int, int]]:
    """Read DALI's index: member name -> (offset, size) in bytes. Raises ValueError when it is not one."""
    header, *lines = Path(path).read_text("utf-8").splitlines() or [""]
    members: dict[str, tuple[int, int]] = {}
    try:
        version, count = header.split()
        for line in lines:
            cells = line.split(" ")
            for i in range(0, len(cells), 4):
                members[cells[i + 3]] = (int(cells[i + 1]), int(cells[i + 2]))
        if version != "v1.2" or int(count) != len(lines):
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"{path}: not a whole DALI index (v1.2); pack the data set again") from None
    return members
