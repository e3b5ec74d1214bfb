"""Reads shards: NNNNN.tar + NNNNN.idx (DALI's index, v1.2) + dataset.json; shard_writer.py writes them."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .annotations import Repair, Video
from .files import FilePart, collection_paused, file_sha256, parse_json, sha256_of
from .limits import check_bytes
from .records import (
    DESCRIPTION,
    DatasetDescription,
    EncodedFrames,
    PackedVideo,
    ground_truth_of_subset,
    read_description,
    read_index,
    videos_of_subset,
)
from .remote import (
    DESCRIPTION_BYTES,
    INDEX_BYTES,
    PART_BYTES,
    Location,
    cache_folder,
    fetch,
    fetch_bytes,
    locate,
)
from .text import short

if TYPE_CHECKING:
    from .packets_file import PackedFile

MOST_PACKETS = 1 << 23  # whose places are kept, 16 bytes each: 90 hours at 25 frames a second


class Dataset:
    """A data set that was packed: what is in it, and the encoded bytes of each video.

    classes: sorted names. videos: by key. packing: how it was packed ("settings" in dataset.json).
    shards: the tars, in order. repairs: what was corrected in the annotations, by the video's name there.
    """

    def __init__(self, folder: Path, description: DatasetDescription, location: Location):
        self.folder, self.location = folder, location
        self.classes: tuple[str, ...] = description.classes
        self.packing: dict[str, Any] = description.settings
        self.repairs: tuple[Repair, ...] = description.repairs
        names = {shard.file for shard in description.shards}
        chosen: set[str | None] = set(location.chosen or names)
        self.shards = {shard.file: shard for shard in description.shards if shard.file in chosen}
        if chosen == names:
            chosen.add(None)  # the shard of rejected videos
        self.videos: dict[str, PackedVideo] = {
            v.key: v for v in description.videos.values() if v.shard in chosen
        }
        self._indexes: dict[str, dict[str, tuple[int, int]]] = {}
        self._files: dict[str, PackedFile] = {}  # of videos that are read in parts
        self._num_packets = 0  # of all _files
        self._files_lock = threading.Lock()

    @staticmethod
    def open(location: str | Path) -> Dataset:
        """Open a folder, one or more tars in it (path, glob, brace range) or a URL (see remote.py).

        Where only some of the tars are named, the data set has the videos in those, and no rejected ones.
        Raises ValueError, one line, when there is no data set or it is not one of this version, and when a
        tar is cut or missing; a remote one is checked when it is fetched. Without a single tar the data set
        can still be opened for what dataset.json says about its videos, such as their ground truth.
        """
        if str(location).lower().endswith((".h5", ".hdf5")):
            raise ValueError(
                f"{location}: is a feature file; want the packed videos, a folder of make-shards"
            )
        found = locate(location)
        folder, document = _read_description(found)
        where = short(found.url, 200, quoted=False) if found.url else folder / DESCRIPTION
        unknown = sorted(set(found.chosen or ()) - {shard.file for shard in document.shards})
        if unknown:
            raise ValueError(f"{where}: does not list {unknown[0]}, want one of its own tars")
        dataset = Dataset(folder, document, found)
        if any((folder / name).is_file() for name in dataset.shards):
            for name in dataset.local_shards():
                dataset.check_size(name)
        return dataset

    def local_shards(self) -> list[str]:
        """The tars that should be on this machine: all, or of a remote data set those fetched so far."""
        remote = self.location.url is not None
        return [name for name in self.shards if not remote or self._is_fetched(name)]

    def _is_fetched(self, name: str) -> bool:
        """Whether a file of a remote data set is in the cache, a tar with all its bytes."""
        path = self.folder / name
        return path.is_file() and (name not in self.shards or path.stat().st_size == self.shards[name].bytes)

    def check_size(self, name: str) -> None:
        """ValueError unless a tar is there and as long as dataset.json says: the cheapest check of a copy."""
        path, wanted = self.folder / name, self.shards[name].bytes
        size = path.stat().st_size if path.is_file() else 0
        if size != wanted:
            raise ValueError(
                f"{path}: has {size} bytes, want {wanted} as in dataset.json; copy it again, or pack again "
                "with make-shards --force"
            )

    def packed(self, subset: str) -> list[PackedVideo]:
        """The videos of a subset that have pixels, by key. Raises ValueError when there are none."""
        return videos_of_subset(self.videos, subset, where=self.folder)

    def ground_truth(self, subset: str) -> dict[str, Video]:
        """All videos of a subset, the rejected ones too: they stay in the denominator of mAP."""
        return ground_truth_of_subset(self.videos, subset)

    def read(self, key: str) -> bytes:
        """The encoded bytes of one video. Raises ValueError, naming shard and key, when they are damaged."""
        part = self._part(key)
        data = part.read()
        self._check_part(key, part, len(data), sha256_of(data))
        return data

    def _part(self, key: str) -> FilePart:
        """Where a video lies on this machine; errors as `read`."""
        video = self.videos.get(key)
        if video is None or video.shard is None:
            raise ValueError(
                f"{self.folder}: {key} has no packed video ({video.reject if video else 'unknown key'})"
            )
        path = self._local_path(video.shard)
        entry = self.index(video.shard).get(f"{key}.mp4")
        if entry is None:
            raise ValueError(f"{path}: {video.name}: not in the index, pack the data set again")
        try:
            check_bytes(entry[1])
        except ValueError as error:
            raise ValueError(f"{path}: {video.name}: {error}") from None
        return FilePart(path, *entry)

    def _check_part(self, key: str, part: FilePart, size: int, sha256: str) -> None:
        """ValueError unless as many bytes as were found, with this sha256, are those that were packed."""
        where = f"{part.path}: {self.videos[key].name}"
        if size < part.size:
            raise ValueError(
                f"{where}: the tar is cut, {size} of {part.size} bytes are there; copy or pack it again"
            )
        if sha256 != self.videos[key].sha256:
            raise ValueError(
                f"{where}: sha256 differs from dataset.json, the tar is damaged; copy or pack it again"
            )

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames:
        """The encoded bytes that `frames` of a video need, or those of the whole; ValueError as `read`.

        Where a part is asked for, the sha256 of the video is checked the first time; then only the packets
        that the frames need are read: a window costs the same whatever the length of its video.
        """
        num_frames = self.videos[key].num_frames
        if 2 * (frames.max() - frames.min() + 1) <= num_frames:
            file = self._files.get(key) or self._open_file(key)
            if file.in_order:
                return file.encoded_frames(frames)
        return EncodedFrames(self.read(key), frames, num_frames)

    def _open_file(self, key: str) -> PackedFile:
        from .packets_file import PackedFile  # it takes a while, and reading a description needs none of it

        part = self._part(key)
        size = min(part.size, max(0, part.path.stat().st_size - part.offset))
        self._check_part(key, part, size, file_sha256(part))
        file = PackedFile(part, self.videos[key].num_frames)
        self._keep(key, file)
        return file

    def _keep(self, key: str, file: PackedFile) -> None:
        """Remember where the packets of a video lie, instead of those of the first ones if need be."""
        with self._files_lock:
            if key in self._files:
                return  # another thread opened it meanwhile
            self._files[key] = file
            self._num_packets += file.num_frames
            while self._num_packets > MOST_PACKETS and len(self._files) > 1:
                self._num_packets -= self._files.pop(next(iter(self._files))).num_frames

    def _local_path(self, name: str) -> Path:
        """A tar, or the index of one, on this machine; fetched if it is not."""
        path = self.folder / name
        if self.location.url is not None and not self._is_fetched(name):
            # a short error page in place of a shorter tar is read, and then refused by its size
            most = max(self.shards[name].bytes, PART_BYTES) if name in self.shards else INDEX_BYTES
            fetch(self.location.url_of(name), path, most=most, check=partial(self._check_fetched, name))
        return path

    def _check_fetched(self, name: str, path: Path) -> None:
        """ValueError unless a fetched file is the tar, or an index, that dataset.json means."""
        shard = self.shards.get(name)
        if shard is None:
            read_index(path)
        elif path.stat().st_size != shard.bytes:
            raise ValueError(f"has {path.stat().st_size} bytes, want {shard.bytes} as in dataset.json")
        elif file_sha256(path) != shard.sha256:
            raise ValueError("sha256 differs from dataset.json")

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


def _read_description(location: Location) -> tuple[Path, DatasetDescription]:
    """The folder of a data set, for a remote one in the cache, and what its dataset.json holds."""
    if location.folder is not None:
        path = location.folder / DESCRIPTION
        if not path.is_file():
            raise ValueError(
                f"{location.folder}: no {DESCRIPTION} in it, want a folder that make-shards wrote"
            )
        return location.folder, _parsed(path.read_bytes(), path)
    assert location.url is not None
    where = short(location.url, 200, quoted=False)
    data = fetch_bytes(location.url, most=DESCRIPTION_BYTES, check=partial(parse_json, where=DESCRIPTION))
    return cache_folder(location.url, data), _parsed(data, where)


def _parsed(data: bytes, where: object) -> DatasetDescription:
    with collection_paused():
        return read_description(parse_json(data, where=where), where=where)
