"""Finds the videos that pages show, in files, folders or packed shards; links them, or embeds their bytes."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.dataset import Dataset
from pipeline.files import write_bytes
from pipeline.packing.video_folder import VIDEO_SUFFIXES, VideoFiles, VideoFolder
from pipeline.text import first_names
from train.evaluation.files import video_names_of
from train.evaluation.video_names import Names, match_videos

NOT_FOUND = "no video of this name was found"
MIME = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
MIME |= {".mkv": "video/x-matroska", ".ogv": "video/ogg"}
MIB = 1 << 20


@dataclass(frozen=True)
class FoundVideo:
    """One video: a file on disk, or a key in a packed data set."""

    name: str
    path: Path | None = None
    dataset: Dataset | None = None

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path else len(self.read())

    def begin(self) -> float:
        """Seconds on the file's own clock at which it begins; packed videos begin at 0."""
        if self.path is None:
            return 0.0
        from pipeline.packing.prepare import stated_begin

        return stated_begin(self.path)

    def read(self) -> bytes:
        """The encoded bytes; ValueError or OSError if they cannot be read."""
        if self.path is not None:
            return self.path.read_bytes()
        assert self.dataset is not None
        return self.dataset.read(self.name)


@dataclass(frozen=True)
class VideoFinder:
    """Looks for videos in single files, in those that predict read, in folders, then in packed data sets.

    files: those that predict read, by key. names: further names of the videos that pages ask for, by key;
    packed: where these lie in a packed data set, or why they do not. Both are filled by `match_names`.
    """

    datasets: list[Dataset] = field(default_factory=list)
    folders: list[VideoFolder] = field(default_factory=list)
    single: VideoFiles = field(default_factory=lambda: VideoFiles(()))
    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    packed: dict[str, FoundVideo | str] = field(default_factory=dict)

    @staticmethod
    def open(locations: tuple[Path, ...]) -> VideoFinder:
        """Read what is there: video files, folders of them (searched through), packed data sets."""
        datasets, folders, single = [], [], []
        for location in locations:
            if not location.exists():
                raise ValueError(f"{location}: not here; --videos wants files, folders, or a packed data set")
            if (location / "dataset.json").is_file() or location.name == "dataset.json":
                folder = location.parent if location.name == "dataset.json" else location
                datasets.append(Dataset.open(folder))
            elif location.is_dir():
                folders.append(VideoFolder(location))
            else:
                single.append(location)
        return VideoFinder(datasets, folders, VideoFiles(single))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to search."""
        return not (self.datasets or self.folders or self.single.by_tail or self.files)

    def add_predicted(self, files: Mapping[str, str]) -> None:
        """Add the files that `leantad predict` read, {key: path}.

        Only video files are added: a foreign result file must not put another file of this machine
        into a page.
        """
        for key, file in files.items():
            path = Path(file)
            if "\0" not in file and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                self.files.setdefault(key, path)

    def match_names(self, videos: Names) -> None:
        """Find, in all packed data sets at once, the videos that pages will ask for by these keys."""
        for key, names in videos.items():
            self.names[key] = [*names]
        for dataset in self.datasets:
            for key, packed_key in match_videos(videos, video_names_of(dataset)).items():
                video = FoundVideo(packed_key, dataset=dataset)
                self.packed.setdefault(key, dataset.videos[packed_key].reject or video)

    def rejected(self) -> dict[str, str]:
        """Videos that could not be packed, with the reason."""
        return {key: reason for key, reason in self.packed.items() if isinstance(reason, str)}

    def find(self, key: str) -> FoundVideo | str:
        """The video of this name, or why there is none."""
        reason = NOT_FOUND
        names = self.names.get(key, [])
        single = self.single.find(key, (f"v_{key}", *names))  # v_: ActivityNet's files
        if len(single) == 1:
            return FoundVideo(key, path=single[0])
        if key in self.files:
            return FoundVideo(key, path=self.files[key])
        if single:
            reason = f"{len(single)} files have this name: {first_names(map(str, single), quoted=False)}"
        for folder in self.folders:
            for name in (key, *names):
                file, missing = folder.find(name)
                if file is not None:
                    return FoundVideo(key, path=folder.folder / file)
                reason = missing if missing and "have this name" in missing else reason
        return self.packed.get(key, reason)


def embedded(video: FoundVideo, limit_mib: float) -> tuple[dict[str, Any], str]:
    """The page's entry for a video inside it, and its bytes as base64.

    ValueError if it is larger than the limit.
    """
    size = video.size()
    if size > limit_mib * MIB:
        raise ValueError(
            f"{video.path or video.name}: {size / MIB:.1f} MiB, want at most {limit_mib:g} to embed it; "
            "raise --embed-limit, or leave out --embed to link the file"
        )
    suffix = video.path.suffix.lower() if video.path else ".mp4"
    name = video.path.name if video.path else video.name
    media_type = MIME.get(suffix, "application/octet-stream")
    entry = {"name": name, "type": media_type, "url": None, "begin": video.begin()}
    return entry, base64.b64encode(video.read()).decode("ascii")


def linked(video: FoundVideo, page: Path, copy: Path) -> dict[str, Any]:
    """The page's entry for a video beside it; one that lies in a shard is written to `copy` first."""
    path = video.path
    if path is None:
        path = copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(copy, video.read())
    relative = os.path.relpath(path.resolve(), page.parent.resolve())
    address = quote(Path(relative).as_posix(), errors="surrogateescape")
    return {"name": path.name, "type": "", "url": address, "begin": video.begin()}
