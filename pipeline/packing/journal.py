"""Keeps on disk what a packing run has done, so that a run that was killed does not start over.

`videos/KEY.json` records a video's result; its encoded bytes wait in `videos/KEY.mp4` until they are in a
shard. `shards/NNNNN.json` records a complete tar and the keys in it. A record counts from its rename on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from ..files import read_json, remove_left_once, write_bytes, write_text
from ..records import Shard, keyed
from ..schemas import Table, Text, exact, validated
from .pack_video import PackResult

DAMAGED = "start again with --force"  # what helps where a record is none of ours


@exact
@dataclass(frozen=True)
class PlanRecord:
    """`plan.json`: the digest of the plan that is being packed, and how its videos are packed."""

    plan: Text
    settings: Table


@exact
@dataclass(frozen=True)
class ShardRecord:
    """`shards/NNNNN.json`: a complete tar and the keys of the videos in it."""

    shard: Shard
    keys: tuple[Text, ...]


_PLAN, _SHARD, _RESULT = TypeAdapter(PlanRecord), TypeAdapter(ShardRecord), TypeAdapter(PackResult)


def read_plan(path: Path) -> PlanRecord:
    """The record of what is being packed; ValueError naming the file if it is damaged."""
    return validated(_PLAN, read_json(path), where=path, advice=DAMAGED)


class Journal:
    """Reads and writes the records in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.temporary = folder / "temporary"  # of the workers; a killed run may have left some of it
        shutil.rmtree(self.temporary, ignore_errors=True)
        for name in ("videos", "shards", "temporary"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # Here, not in each worker, which is a process of its own: the folder is as long as the data set.
        remove_left_once((folder / "videos").absolute())

    def encoded_path(self, key: str) -> Path:
        """The file in which the encoded bytes of a video wait for their shard."""
        return self.folder / "videos" / f"{key}.mp4"

    def result(self, key: str) -> PackResult | None:
        """The recorded result of a video; None if it is not done."""
        path = self.folder / "videos" / f"{key}.json"
        if not path.exists():
            return None
        entry = read_json(path)
        if isinstance(entry, dict):
            entry = {"repairs": entry.pop("repairs", ()), "video": keyed(key, entry)}
        return validated(_RESULT, entry, where=path, advice=DAMAGED)

    def commit(self, result: PackResult, data: bytes) -> None:
        """Write the video's bytes first, then its record: from there on it is done."""
        key = result.video.key
        if data:
            write_bytes(self.encoded_path(key), data)
        repairs = [asdict(repair) for repair in result.repairs]
        text = json.dumps({**result.video.to_json(), "repairs": repairs})
        write_text(self.folder / "videos" / f"{key}.json", text)

    def shards(self) -> list[ShardRecord]:
        """The complete shards in order, each with its keys."""
        paths = sorted((self.folder / "shards").glob("*.json"))
        return [validated(_SHARD, read_json(path), where=path, advice=DAMAGED) for path in paths]

    def commit_shard(self, shard: Shard, keys: list[str]) -> None:
        """Write the shard's record: from there on it is done, and the bytes that waited for it can go."""
        text = json.dumps({"shard": asdict(shard), "keys": keys})
        write_text(self.folder / "shards" / f"{Path(shard.file).stem}.json", text)
        for key in keys:
            self.encoded_path(key).unlink(missing_ok=True)
