"""Checks a packed data set by reading every byte and decoding every frame as training does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..dataset import Dataset
from ..files import file_sha256
from ..records import PackedVideo
from ..text import first_names

DECODE_CHUNK_MIB = 64  # frames in memory at a time


def check_tars(dataset: Dataset, *, progress: Callable[[Iterable[str]], Iterable[str]] = iter) -> None:
    """Read every tar that is on this machine, and its index.

    Raises ValueError naming those that are not what was written.
    """
    damaged = [name for name in progress(dataset.local_shards()) if not _is_whole(dataset, name)]
    if damaged:
        raise ValueError(
            f"{dataset.folder}: sha256 differs from dataset.json in {len(damaged)} of {len(dataset.shards)} "
            f"tars ({first_names(damaged, 5, quoted=False)}); copy these again, or pack again with "
            "make-shards --force"
        )


def _is_whole(dataset: Dataset, name: str) -> bool:
    dataset.check_size(name)
    dataset.index(name)
    return file_sha256(dataset.folder / name) == dataset.shards[name].sha256


def verify(
    location: str | Path, *, progress: Callable[[Iterable[PackedVideo]], Iterable[PackedVideo]] = iter
) -> int:
    """Decode all packed videos; returns the number of frames.

    Raises ValueError naming the shard and the key when a tar is not the one that was written, or a video does
    not decode to the frames and size that dataset.json states.
    """
    dataset = Dataset.open(location)
    check_tars(dataset)
    packed = [video for video in dataset.videos.values() if video.shard is not None]
    return sum(_verify_video(dataset, video) for video in progress(packed))


def _verify_video(dataset: Dataset, video: PackedVideo) -> int:
    from ..decode import decode_frames  # DALI and torch take seconds to import

    data, count = dataset.read(video.key), 0
    try:
        for chunk in decode_frames(
            data,
            np.arange(video.num_frames),
            codec=video.codec,
            num_frames=video.num_frames,
            device="cpu",
            decode_chunk_mib=DECODE_CHUNK_MIB,
        ):
            if tuple(chunk.shape[1:3]) != (video.height, video.width):
                raise ValueError(f"decodes to {tuple(chunk.shape[1:3])}, want {video.height}x{video.width}")
            count += len(chunk)
        if count != video.num_frames:
            raise ValueError(f"decodes to {count} frames, want {video.num_frames}")
    except ValueError as error:
        raise ValueError(f"{dataset.folder / str(video.shard)}: {video.name}: {error}") from None
    return count
