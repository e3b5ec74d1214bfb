"""Keeps on disk what a packing run has done, so that a run that was killed does not start over.

`videos/KEY.json` records a video's result; its encoded bytes wait in `videos/KEY.mp4` until they are in a
shard. `shards/NNNNN.json` records a complete tar and the keys in it. A record counts from its rename on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ..annotations import Repair
from ..files import read_json, write_bytes, write_text
from ..records import PackedVideo, Shard
from .pack_video import PackResult


class Journal:
    """Reads and writes the records in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.temporary = folder / "temporary"  # of the workers; a killed run may have left some of it
        shutil.rmtree(self.temporary, ignore_errors=True)
        for name in ("videos", "shards", "temporary"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def encoded_path(self, key: str) -> Path:
        """The file in which the encoded bytes of a video wait for their shard."""
        return self.folder / "videos" / f"{key}.mp4"

    def result(self, key: str) -> PackResult | None:
        """The recorded result of a video; None if it is not done."""
        path = self.folder / "videos" / f"{key}.json"
        if not path.exists():
            return None
        entry = read_json(path)
        repairs = tuple(Repair(**repair) for repair in entry.pop("repairs"))
        return PackResult(PackedVideo.from_json(key, entry), repairs)

    def commit(self, result: PackResult, data: bytes) -> None:
        """Write the video's bytes first, then its record: from there on it is done."""
        key = result.video.key
        if data:
            write_bytes(self.encoded_path(key), data)
        repairs = [asdict(repair) for repair in result.repairs]
        text = json.dumps({**result.video.to_json(), "repairs": repairs})
        write_text(self.folder / "videos" / f"{key}.json", text)

    def shards(self) -> list[tuple[Shard, list[str]]]:
        """The complete shards in order, each with its keys."""
        entries = [read_json(path) for path in sorted((self.folder / "shards").glob("*.json"))]
        return [(Shard(**entry["shard"]), entry["keys"]) for entry in entries]

    def commit_shard(self, shard: Shard, keys: list[str]) -> None:
        """Write the shard's record: from there on it is done, and the bytes that waited for it can go."""
        text = json.dumps({"shard": asdict(shard), "keys": keys})
        write_text(self.folder / "shards" / f"{Path(shard.file).stem}.json", text)
        for key in keys:
            self.encoded_path(key).unlink(missing_ok=True)
