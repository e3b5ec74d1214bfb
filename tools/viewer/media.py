"""Where a page's video comes from: files, folders or packed shards; linked by relative path, or embedded."""

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
from train.evaluation.files import video_names_of
from train.evaluation.video_names import Names, match_videos

MIME = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
MIME |= {".mkv": "video/x-matroska", ".ogv": "video/ogg"}
MIB = 1 << 20


@dataclass(frozen=True)
class Clip:
    """One video: a file on disk, or a key in a packed data set."""

    name: str
    path: Path | None = None
    dataset: Dataset | None = None

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path else len(self.read())

    def read(self) -> bytes:
        """The encoded bytes; ValueError or OSError if they cannot be read."""
        if self.path is not None:
            return self.path.read_bytes()
        assert self.dataset is not None
        return self.dataset.read(self.name)


@dataclass(frozen=True)
class Library:
    """All places to look for videos, in the order they were given.

    called: what the videos that are looked for are called, and packed: where they lie in a packed data set,
    or why they do not; both as `expect` takes them in.
    """

    datasets: list[Dataset] = field(default_factory=list)
    folders: list[Any] = field(default_factory=list)  # pipeline.packing.pack_video.VideoFolder
    files: dict[str, Path] = field(default_factory=dict)
    called: dict[str, list[str]] = field(default_factory=dict)
    packed: dict[str, Clip | str] = field(default_factory=dict)

    @staticmethod
    def open(locations: tuple[Path, ...]) -> Library:
        """Read what is there: video files, folders of them (searched through), packed data sets."""
        library = Library()
        for location in locations:
            if not location.exists():
                raise ValueError(f"{location}: not here; --videos wants files, folders, or a packed data set")
            if (location / "dataset.json").is_file() or location.name == "dataset.json":
                folder = location.parent if location.name == "dataset.json" else location
                library.datasets.append(Dataset.open(folder))
            elif location.is_dir():
                from pipeline.packing.pack_video import VideoFolder

                library.folders.append(VideoFolder(location))
            else:
                for name in (location.name, location.stem):
                    library.files.setdefault(name, location)
        return library

    @property
    def empty(self) -> bool:
        return not (self.datasets or self.folders or self.files)

    def add_predicted(self, files: Mapping[str, str]) -> None:
        """Take in the files that `leantad predict` read, {key: path}.

        Only video files are: a foreign result file must not put any other file of this machine into a page.
        """
        from pipeline.packing.pack_video import VIDEO_SUFFIXES

        for key, file in files.items():
            path = Path(file)
            if "\0" not in file and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                self.files.setdefault(key, path)

    def expect(self, videos: Names) -> None:
        """Look up, in all packed data sets at once, the videos that pages will ask for by these keys."""
        for key, names in videos.items():
            self.called[key] = [*names]
        for dataset in self.datasets:
            for key, there in match_videos(videos, video_names_of(dataset)).items():
                clip = Clip(there, dataset=dataset)
                self.packed.setdefault(key, dataset.videos[there].reject or clip)

    def rejected(self) -> dict[str, str]:
        """Videos that could not be packed, with the reason."""
        return {key: reason for key, reason in self.packed.items() if isinstance(reason, str)}

    def find(self, key: str) -> Clip | str:
        """The video of this name, or why there is none."""
        reason = "no video of this name was found"
        called = self.called.get(key, [])
        for name in (key, f"v_{key}", *(Path(name).name for name in called)):  # v_: ActivityNet's files
            if name in self.files:
                return Clip(key, path=self.files[name])
        for folder in self.folders:
            for name in (key, *called):
                file, missing = folder.find(name)
                if file is not None:
                    return Clip(key, path=folder.folder / file)
                reason = missing if missing and "have this name" in missing else reason
        return self.packed.get(key, reason)


def embedded(clip: Clip, limit_mib: float) -> tuple[dict[str, Any], str]:
    """The page's facts about a video inside it, and its bytes as base64.

    ValueError if it is larger than the limit.
    """
    size = clip.size()
    if size > limit_mib * MIB:
        raise ValueError(
            f"{clip.path or clip.name}: {size / MIB:.1f} MiB, want at most {limit_mib:g} to embed it; "
            "raise --embed-limit, or leave out --embed to link the file"
        )
    suffix = clip.path.suffix.lower() if clip.path else ".mp4"
    name = clip.path.name if clip.path else clip.name
    facts = {"name": name, "type": MIME.get(suffix, "application/octet-stream"), "url": None}
    return facts, base64.b64encode(clip.read()).decode("ascii")


def linked(clip: Clip, page: Path, copy: Path) -> dict[str, Any]:
    """The page's facts about a video beside it; one that lies in a shard is written to `copy` first."""
    path = clip.path
    if path is None:
        path = copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(copy, clip.read())
    relative = os.path.relpath(path.resolve(), page.parent.resolve())
    address = quote(Path(relative).as_posix(), errors="surrogateescape")
    return {"name": path.name, "type": "", "url": address}
