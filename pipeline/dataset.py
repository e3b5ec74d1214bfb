"""Reads shards: NNNNN.tar + NNNNN.idx (DALI's index, v1.2) + dataset.json; shard_writer.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .annotations import Repair, Video
from .files import parse_json, sha256_of
from .limits import check_bytes
from .records import (
    DESCRIPTION,
    FILE_NAME,
    FORMAT,
    KEY,
    VERSION,
    EncodedFrames,
    PackedVideo,
    Shard,
    read_index,
)
from .remote import Location, cache_folder, cache_root, fetch, locate


class Dataset:
    """A data set that was packed: what is in it, and the encoded bytes of each video.

    classes: sorted names. videos: by key. packing: how it was packed ("settings" in dataset.json).
    shards: the tars, in order. repairs: what was corrected in the annotations, by the video's name there.
    """

    def __init__(self, folder: Path, document: dict[str, Any], location: Location):
        self.folder, self.location = folder, location
        self.classes: tuple[str, ...] = tuple(document["classes"])
        self.packing: dict[str, Any] = document["settings"]
        self.repairs = tuple(Repair(**entry) for entry in document["repairs"])
        shards = [Shard(**entry) for entry in document["shards"]]
        videos = [PackedVideo.from_json(key, entry) for key, entry in document["videos"].items()]
        names = {shard.file for shard in shards}
        _check_names(shards, videos, names, location)
        chosen: set[str | None] = set(location.chosen or names)
        self.shards = {shard.file: shard for shard in shards if shard.file in chosen}
        if chosen == names:
            chosen.add(None)  # the shard of rejected videos
        self.videos: dict[str, PackedVideo] = {video.key: video for video in videos if video.shard in chosen}
        self._indexes: dict[str, dict[str, tuple[int, int]]] = {}

    @staticmethod
    def open(location: str | Path) -> Dataset:
        """Open a folder, one or more tars in it (path, glob, brace range) or a URL (see remote.py).

        Where only some of the tars are named, the data set has the videos in those, and no rejected ones.
        Raises ValueError, one line, when there is no data set or it is not one of this version, and when a
        tar is cut or missing; a remote one is checked when it is fetched. Without a single tar the data set
        can still be opened for what dataset.json says about its videos, such as their ground truth.
        """
        found = locate(location)
        folder, description = _read_description(found)
        where = found.url or folder / DESCRIPTION
        document = parse_json(description, where=where)
        try:
            _check_version(document)
            dataset = Dataset(folder, document, found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: not a data set of make-shards: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any((folder / name).is_file() for name in dataset.shards):
            for name in dataset.local_shards():
                dataset.check_size(name)
        return dataset

    def local_shards(self) -> list[str]:
        """The tars that should be on this machine: all, or of a remote data set those fetched so far."""
        remote = self.location.url is not None
        return [name for name in self.shards if not remote or (self.folder / name).is_file()]

    def check_size(self, name: str) -> None:
        """ValueError unless a tar is there and as long as dataset.json says: the cheapest check of a copy."""
        path, wanted = self.folder / name, self.shards[name].bytes
        size = path.stat().st_size if path.is_file() else 0
        if size != wanted:
            local = self.location.url is None
            again = (
                "copy it again, or pack again with make-shards --force"
                if local
                else "remove it to fetch it again"
            )
            raise ValueError(f"{path}: has {size} bytes, want {wanted} as in dataset.json; {again}")

    def packed(self, subset: str) -> list[PackedVideo]:
        """The videos of a subset that have pixels, by key. Raises ValueError when there are none."""
        found = [video for _, video in sorted(self.videos.items()) if video.subset == subset and video.shard]
        if not found:
            counts: dict[str, int] = {}
            for video in self.videos.values():
                counts[video.subset] = counts.get(video.subset, 0) + (video.shard is not None)
            subsets = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
            raise ValueError(f"{self.folder}: no packed video in subset {subset!r}, want one of: {subsets}")
        return found

    def ground_truth(self, subset: str) -> dict[str, Video]:
        """All videos of a subset, the rejected ones too: they stay in the denominator of mAP."""
        return {
            key: Video(key, subset, video.duration, video.actions)
            for key, video in sorted(self.videos.items())
            if video.subset == subset
        }

    def read(self, key: str) -> bytes:
        """The encoded bytes of one video. Raises ValueError, naming shard and key, when they are damaged."""
        video = self.videos.get(key)
        if video is None or video.shard is None:
            raise ValueError(
                f"{self.folder}: {key} has no packed video ({video.reject if video else 'unknown key'})"
            )
        where = f"{self._local_path(video.shard)}: {video.name}"
        entry = self.index(video.shard).get(f"{key}.mp4")
        if entry is None:
            raise ValueError(f"{where}: not in the index, pack the data set again")
        offset, size = entry
        try:
            check_bytes(size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        with open(self._local_path(video.shard), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(
                f"{where}: the tar is cut, {len(data)} of {size} bytes are there; copy or pack it again"
            )
        if sha256_of(data) != video.sha256:
            raise ValueError(
                f"{where}: sha256 differs from dataset.json, the tar is damaged; copy or pack it again"
            )
        return data

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames:
        """The encoded bytes that `frames` of a video need: here always those of the whole video."""
        return EncodedFrames(self.read(key), frames, self.videos[key].num_frames)

    def _local_path(self, name: str) -> Path:
        path = self.folder / name
        if self.location.url is not None and not path.is_file():
            fetch(self.location.url_of(name), path)
            if name in self.shards:
                self.check_size(name)
        return path

    def index(self, shard: str) -> dict[str, tuple[int, int]]:
        """Where the members of a tar lie: name -> (offset, size) in bytes. Raises ValueError without it."""
        if shard not in self._indexes:
            path = self._local_path(self.shards[shard].index)
            try:
                self._indexes[shard] = read_index(path)
            except FileNotFoundError:
                raise ValueError(
                    f"{path}: missing, want the index beside the tar; copy or pack it again"
                ) from None
        return self._indexes[shard]


def _read_description(location: Location) -> tuple[Path, bytes]:
    """The folder of a data set, for a remote one in the cache, and the bytes of its dataset.json."""
    if location.folder is not None:
        path = location.folder / DESCRIPTION
        if not path.is_file():
            raise ValueError(
                f"{location.folder}: no {DESCRIPTION} in it, want a folder that make-shards wrote"
            )
        return location.folder, path.read_bytes()
    assert location.url is not None
    path = cache_root() / f"{sha256_of(location.url)[:20]}.json"
    fetch(location.url, path)
    description = path.read_bytes()
    return cache_folder(location.url, description), description


def _check_version(document: dict[str, Any]) -> None:
    found = document["format"], document["version"]
    if found != (FORMAT, VERSION):
        raise ValueError(f"got {found[0]} version {found[1]}, want {FORMAT} {VERSION}")


def _check_names(shards: list[Shard], videos: list[PackedVideo], names: set[str], location: Location) -> None:
    """A file name that leaves the folder, or a tar that the data set does not have, is an error."""
    for name in [name for shard in shards for name in (shard.file, shard.index)]:
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r} leaves the folder, want plain names such as 00000.tar")
    for video in videos:
        if not KEY.fullmatch(video.key):
            raise ValueError(f"key {video.key!r}: want letters, digits, _ and - only")
        if video.shard is not None and video.shard not in names:
            raise ValueError(f"{video.key} lies in {video.shard}, which is not one of its shards")
    unknown = sorted(set(location.chosen or ()) - names)
    if unknown:
        raise ValueError(f"does not list {unknown[0]}, want one of its own tars")
