"""The journal of a packing run: what is done, so that a run that was killed does not start over.

`videos/KEY.json` says what became of a video, its bytes wait in `KEY.mp4`; `shards/NNNNN.json` names a tar
that is whole and the keys in it. A file counts from its rename on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..annotations import Repair
from ..files import write_bytes, write_text
from ..records import PackedVideo, Shard
from .pack_video import PackResult


class Journal:
    """Reads and writes the journal in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("videos", "shards"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def data_of(self, key: str) -> Path:
        """Where the encoded bytes of a video wait for their shard."""
        return self.folder / "videos" / f"{key}.mp4"

    def outcome(self, key: str) -> PackResult | None:
        """What became of a video; None if it is not done."""
        path = self.folder / "videos" / f"{key}.json"
        if not path.exists():
            return None
        entry = json.loads(path.read_text("utf-8"))
        repairs = tuple(Repair(**repair) for repair in entry.pop("repairs"))
        return PackResult(PackedVideo.from_json(key, entry), repairs)

    def commit(self, outcome: PackResult, data: bytes) -> None:
        """From here on the video is done: first its bytes, then the word about them."""
        key = outcome.video.key
        if data:
            write_bytes(self.data_of(key), data)
        repairs = [asdict(repair) for repair in outcome.repairs]
        text = json.dumps({**outcome.video.to_json(), "repairs": repairs})
        write_text(self.folder / "videos" / f"{key}.json", text)

    def shards(self) -> list[tuple[Shard, list[str]]]:
        """The finished shards in order, each with its keys."""
        paths = sorted((self.folder / "shards").glob("*.json"))
        entries = [json.loads(path.read_text("utf-8")) for path in paths]
        return [(Shard(**entry["shard"]), entry["keys"]) for entry in entries]

    def commit_shard(self, shard: Shard, keys: list[str]) -> None:
        """From here on the shard is done, and the bytes that waited for it can go."""
        text = json.dumps({"shard": asdict(shard), "keys": keys})
        write_text(self.folder / "shards" / f"{Path(shard.file).stem}.json", text)
        for key in keys:
            self.data_of(key).unlink(missing_ok=True)
