"""Entries of dataset.json as dataclasses, which are its schema too, and the reader of a tar's index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, TypeAdapter

from .annotations import Action, Repair, Video
from .schemas import Count, Number, Table, Text, exact, validated
from .text import short

FORMAT, VERSION = "leantad-dataset", 1
DESCRIPTION = "dataset.json"
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def action_entry(entry: Any) -> Any:
    """The fields of an action as dataset.json spells them; anything else as it is."""
    if isinstance(entry, dict) and entry.keys() == {"segment", "label"}:
        segment = entry["segment"]
        if isinstance(segment, list) and len(segment) == 2:
            return {"start": segment[0], "end": segment[1], "label": entry["label"]}
    return entry


Size = Annotated[Count, Field(le=1 << 16)]  # pixels; no coded picture is larger
Seconds = Annotated[Number, Field(ge=0, le=1e9)]  # 30 years


@exact
@dataclass(frozen=True)
class PackedVideo:
    """One video of a data set. duration in seconds, fps in frames per second, width and height in pixels.

    A rejected video has shard None, the reason in reject, num_frames 0, and its annotated duration (None:
    unknown). source is the name in the annotations, codec the short name PyAV gives it, sha256 that of the
    encoded bytes, pix_fmt FFmpeg's name of the pixels' layout (None: packed before it was recorded).
    """

    key: Text
    subset: Text
    duration: Seconds | None
    fps: Annotated[Number, Field(ge=0, le=1e6)]
    num_frames: Count
    width: Size
    height: Size
    codec: Text
    actions: tuple[Annotated[Action, BeforeValidator(action_entry)], ...]
    shard: Text | None
    reject: Text | None
    source: Text
    sha256: Text | None = None
    file: Text | None = None
    pix_fmt: Text | None = None

    @property
    def where(self) -> str:
        """For messages: the shard that it lies in, or its file."""
        return str(self.shard or self.file)

    @property
    def name(self) -> str:
        """For messages: the key, and the name in the annotations where that is another."""
        return self.key if self.source == self.key else f"{self.key} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """The entry in dataset.json, and the `<key>.json` in the tar."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("key", "actions")}
        actions = [{"segment": [action.start, action.end], "label": action.label} for action in self.actions]
        return {**fields, "actions": actions}


class EncodedFrames(NamedTuple):
    """The part of an encoded video that some frames need.

    data: encoded bytes. frames: the numbers of the frames in `data`. num_frames: how many frames it holds.
    """

    data: bytes
    frames: NDArray[np.int64]
    num_frames: int


class AnyVideo(Protocol):
    """A video of a data set, of frames or of features; rejected ones have a reason and neither."""

    @property
    def key(self) -> str: ...

    @property
    def subset(self) -> str: ...

    @property
    def duration(self) -> float | None: ...

    @property
    def actions(self) -> tuple[Action, ...]: ...

    @property
    def reject(self) -> str | None: ...

    @property
    def where(self) -> str: ...


V = TypeVar("V", bound=AnyVideo)


def videos_of_subset(videos: Mapping[str, V], subset: str, *, where: object) -> list[V]:
    """The videos of a subset that are not rejected, by key. ValueError, naming `where`, if there are none."""
    found = [video for _, video in sorted(videos.items()) if video.subset == subset and video.reject is None]
    if not found:
        counts: dict[str, int] = {}
        for video in videos.values():
            counts[video.subset] = counts.get(video.subset, 0) + (video.reject is None)
        subsets = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        raise ValueError(f"{where}: no packed video in subset {subset!r}, want one of: {subsets}")
    return found


def ground_truth_of_subset(videos: Mapping[str, AnyVideo], subset: str) -> dict[str, Video]:
    """All videos of a subset with their actions, by key, rejected ones too."""
    return {
        key: Video(key, subset, video.duration, video.actions)
        for key, video in sorted(videos.items())
        if video.subset == subset
    }


class VideoSource(Protocol):
    """What training, evaluation and prediction read videos from: a data set, or one file (prepare.py)."""

    @property
    def classes(self) -> Sequence[str]: ...

    def packed(self, subset: str) -> list[PackedVideo]: ...

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames: ...


@exact
@dataclass(frozen=True)
class Shard:
    """One complete tar: file names, sha256 and size in bytes of the tar, number of videos in it."""

    file: Text
    index: Text
    sha256: Text
    bytes: Count
    samples: Count


@dataclass(frozen=True)
class DatasetDescription:
    """What dataset.json holds; "settings" says how the videos were packed."""

    classes: tuple[Text, ...]
    settings: Table
    shards: tuple[Shard, ...]
    videos: dict[Text, PackedVideo]
    repairs: tuple[Repair, ...]


_DESCRIPTION = TypeAdapter(DatasetDescription)


def read_description(document: Any, *, where: object) -> DatasetDescription:
    """Check the document of a dataset.json; ValueError naming `where` and the entry that is none of ours."""
    advice = (
        "not a data set of make-shards, or damaged; copy it again, or pack again with make-shards --force"
    )
    found = (document.get("format"), document.get("version")) if isinstance(document, dict) else (None, None)
    if found != (FORMAT, VERSION):
        name = f"{short(found[0], quoted=False)} version {short(found[1])}"
        raise ValueError(f"{where}: got {name}, want {FORMAT} {VERSION}; {advice}")
    fields = {name: value for name, value in document.items() if name in DatasetDescription.__annotations__}
    if isinstance(entries := fields.get("videos"), dict):
        fields["videos"] = {key: keyed(key, entry) for key, entry in entries.items()}
    description = validated(_DESCRIPTION, fields, where=where, advice=advice)
    try:
        _check_description(description)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {advice}") from None
    return description


def keyed(key: str, entry: Any) -> Any:
    """The entry of a video with its key among the fields; anything else as it is."""
    return {**entry, "key": key} if isinstance(entry, dict) else entry


def _check_description(description: DatasetDescription) -> None:
    """ValueError for a file name that leaves the folder, and for entries that contradict each other."""
    for name in [name for shard in description.shards for name in (shard.file, shard.index)]:
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {short(name)} leaves the folder, want plain names such as 00000.tar")
    files, classes = {shard.file for shard in description.shards}, set(description.classes)
    if len(files) < len(description.shards) or len(classes) < len(description.classes):
        raise ValueError("a tar or a class stands there twice, want each once")
    for video in description.videos.values():
        _check_video(video)
        if video.shard is not None and video.shard not in files:
            raise ValueError(
                f"{video.key} lies in {short(video.shard, quoted=False)}, which is not one of its shards"
            )
        unknown = next((action.label for action in video.actions if action.label not in classes), None)
        if unknown is not None:
            raise ValueError(f"{video.key} has an action {short(unknown)}, which is not one of its classes")


def _check_video(video: PackedVideo) -> None:
    """ValueError for a key that is none, a packed video without length or size, or one without a reason."""
    if not KEY.fullmatch(video.key):
        raise ValueError(f"key {short(video.key)}: want letters, digits, _ and - only")
    if video.shard is not None:
        stated = (video.duration, video.fps, video.num_frames, video.width, video.height)
        if not all(stated) or video.reject is not None:
            raise ValueError(f"{video.key} is packed, but has no length or size, or is rejected too")
    elif video.reject is None:
        raise ValueError(f"{video.key} lies in no shard and has no reason for it")


def read_index(path: str | Path) -> dict[str, tuple[int, int]]:
    """Read DALI's index: member name -> (offset, size) in bytes. Raises ValueError when it is not one."""
    members: dict[str, tuple[int, int]] = {}
    try:
        header, *lines = Path(path).read_bytes().decode("ascii").splitlines() or [""]
        version, count = header.split()
        for line in lines:
            cells = line.split(" ")
            for i in range(0, len(cells), 4):
                members[cells[i + 3]] = (_whole(cells[i + 1]), _whole(cells[i + 2]))
        if version != "v1.2" or _whole(count) != len(lines):
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"{path}: not a whole DALI index (v1.2); pack the data set again") from None
    return members


def _whole(cell: str) -> int:
    """A number of bytes or lines in an index: digits alone, and no more than a file system has."""
    if not cell.isdigit() or len(cell) > 18:
        raise ValueError
    return int(cell)
