"""A small data set whose videos are no videos but known bytes: for tests that decode nothing."""

from __future__ import annotations

from pathlib import Path

from pipeline.annotations import Action, Repair
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo


def video(key: str, subset: str = "training", reject: str | None = None) -> PackedVideo:
    actions = (Action(0.25, 0.75, "jump"),)
    return PackedVideo(key, subset, 1.0, 15.0, 15, 128, 96, "vp9", actions, None, reject, f"{key} of ours")


def data_of(number: int) -> bytes:
    return bytes([number]) * (1000 * number + 1)


def write_five_videos(folder: Path) -> Path:
    """Five videos in three shards of two, two and one, and one rejected video."""
    samples = ((video(f"k{i}", "training" if i % 2 else "validation"), data_of(i)) for i in range(5))
    videos, shards = pack_samples(folder, samples, shard_size=2)
    write_dataset(
        folder,
        classes=["jump", "fall"],
        videos=[*videos, video("bad", "validation", "no file of this name")],
        shards=shards,
        packing={"fps": 15},
        repairs=[Repair("k1", "clipped", "by hand")],
    )
    return folder
