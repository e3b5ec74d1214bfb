"""Write WebDataset shards so that equal input gives equal bytes, and nothing half-written has its final name.

A tar holds `<key>.json` and `<key>.mp4` per video: GNU format, flat names, numeric owner 0, time 0.
Whatever the container, the encoded video is stored as `.mp4`.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..annotations import Repair
from ..files import file_sha256, replacing, sha256_of, write_text
from ..records import DESCRIPTION, FORMAT, KEY, VERSION, PackedVideo, Shard

TAR_BLOCK = 512


def unique_keys(names: Iterable[str]) -> dict[str, str]:
    """Map video names to flat keys of letters, digits, `_` and `-`, which stay apart where the names do.

    A name that already is such a key stays as it is; two names that would become one get a part of their
    sha256.
    """
    names = list(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_plain(name), []).append(name)
    keys = {}
    for plain, group in groups.items():
        for name in group:
            alone = plain and (name == plain or len(group) == 1)
            digest = sha256_of(name)[:12]
            keys[name] = plain if alone else f"{plain[:64] or 'video'}-{digest}"
    if len(set(keys.values())) < len(set(names)):
        raise ValueError("video names: two of them give the same key, rename one")
    return keys


def _plain(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_name).strip("_")[:80] if not KEY.fullmatch(name) else name


class ShardWriter:
    """Write one shard: `with ShardWriter(folder, "00000") as writer: writer.write(video, data)`.

    The tar and its index appear when the block ends without an error; then `writer.shard` describes them.
    """

    def __init__(self, folder: str | Path, name: str):
        self.tar, self.idx = Path(folder) / f"{name}.tar", Path(folder) / f"{name}.idx"
        self.partial = self.tar.with_name(self.tar.name + ".tmp")
        self.lines: list[str] = []
        self.shard: Shard | None = None

    def __enter__(self) -> ShardWriter:
        import webdataset

        self.file = open(self.partial, "wb")  # noqa: SIM115 - __exit__ closes it
        options = {"mtime": 0, "user": "", "group": "", "encoder": False, "format": "GNU_FORMAT"}
        self.writer = webdataset.TarWriter(self.file, **options)
        return self

    def write(self, video: PackedVideo, data: bytes) -> PackedVideo:
        """Append one video; returns it with its shard and sha256 filled in."""
        if not KEY.fullmatch(video.key):
            raise ValueError(
                f"{video.key!r}: not a key, want 1 to 80 letters, digits, _ or - (see unique_keys)"
            )
        digest = sha256_of(data)
        video = replace(video, shard=self.tar.name, reject=None, sha256=digest)
        entry = json.dumps(video.to_json(), sort_keys=True).encode()
        offset = self.writer.tarstream.offset
        self.writer.write({"__key__": video.key, "json": entry, "mp4": data})
        offsets = (offset + TAR_BLOCK, offset + 2 * TAR_BLOCK + _padded(len(entry)))
        assert offsets[1] + _padded(len(data)) == self.writer.tarstream.offset
        self.lines.append(
            f"json {offsets[0]} {len(entry)} {video.key}.json mp4 {offsets[1]} {len(data)} {video.key}.mp4"
        )
        return video

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.lines:
                self._complete()
            else:
                with suppress(OSError):  # a full disk, for one: the error that brought us here matters
                    self.writer.close()
        finally:
            with suppress(OSError):
                self.file.close()
            self.partial.unlink(missing_ok=True)

    def _complete(self) -> None:
        self.writer.close()
        self.file.close()
        write_text(self.idx, "\n".join([f"v1.2 {len(self.lines)}", *self.lines]) + "\n")
        size = self.partial.stat().st_size
        shard = Shard(self.tar.name, self.idx.name, file_sha256(self.partial), size, len(self.lines))
        with replacing(self.tar) as complete:
            os.replace(self.partial, complete)
        self.shard = shard


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def pack_samples(
    folder: str | Path, samples: Iterable[tuple[PackedVideo, bytes]], *, shard_size: int = 64
) -> tuple[list[PackedVideo], list[Shard]]:
    """Write (video, encoded bytes) pairs into shards of shard_size videos each, named 00000.tar and so on.

    Returns the videos with shard and sha256 filled in, and the shards: what write_dataset wants.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    videos: list[PackedVideo] = []
    shards: list[Shard] = []
    for number, group in enumerate(_groups(samples, shard_size)):
        with ShardWriter(folder, f"{number:05d}") as writer:
            videos += [writer.write(video, data) for video, data in group]
        assert writer.shard is not None
        shards.append(writer.shard)
    return videos, shards


def _groups(items: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """Iterators of `size` items each, one after the other: only one item is in memory."""
    iterator = iter(items)

    def group(first: Any) -> Iterator[Any]:
        yield first
        for _, item in zip(range(size - 1), iterator):  # noqa: B905 - the shorter side ends the group
            yield item

    for first in iterator:
        yield group(first)


def write_dataset(
    folder: str | Path,
    *,
    classes: Iterable[str],
    videos: Iterable[PackedVideo],
    shards: Iterable[Shard],
    packing: dict[str, Any],
    repairs: Iterable[Repair] = (),
) -> None:
    """Write dataset.json, the last file of a data set; a folder without it is not one.

    packing: how the videos were packed; stands in the file as "settings".
    """
    ordered = sorted(videos, key=lambda video: video.key)
    subsets: dict[str, dict[str, int]] = {}
    for video in ordered:
        counts = subsets.setdefault(video.subset, {"videos": 0, "packed": 0, "actions": 0})
        counts["videos"] += 1
        counts["packed"] += video.shard is not None
        counts["actions"] += len(video.actions)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "classes": sorted(classes),
        "subsets": dict(sorted(subsets.items())),
        "settings": packing,
        "shards": [asdict(shard) for shard in shards],
        "videos": {video.key: video.to_json() for video in ordered},
        "repairs": [asdict(repair) for repair in repairs],
    }
    write_text(Path(folder) / DESCRIPTION, json.dumps(document, indent=1, ensure_ascii=True) + "\n")
