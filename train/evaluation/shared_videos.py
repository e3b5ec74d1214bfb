"""Processes that a launcher started share the videos of an evaluation; rank 0 gathers what they found."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.features.dataset import AnyDataset, FeatureDataset
from pipeline.features.records import FeatureVideo
from pipeline.records import EncodedFrames, PackedVideo
from train.distributed import barrier, rank, world_size
from train.raw_outputs import RawWriter, raw_writer, read_raw, write_raw


@dataclass(frozen=True)
class VideosOfRank:
    """Every `world_size`-th video of a data set, beginning with the `rank`-th, as a source for the Loader."""

    dataset: Dataset
    rank: int
    world_size: int

    @property
    def classes(self) -> Sequence[str]:
        """The data set's."""
        return self.dataset.classes

    def packed(self, subset: str) -> list[PackedVideo]:
        """This rank's videos of the subset; there may be none."""
        return self.dataset.packed(subset)[self.rank :: self.world_size]

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames:
        """The encoded bytes that `frames` need."""
        return self.dataset.encoded_frames(key, frames)


@dataclass(frozen=True)
class FeaturesOfRank:
    """As VideosOfRank, of a feature file."""

    dataset: FeatureDataset
    rank: int
    world_size: int

    @property
    def classes(self) -> Sequence[str]:
        """The file's."""
        return self.dataset.classes

    def packed(self, subset: str) -> list[FeatureVideo]:
        """This rank's videos of the subset; there may be none."""
        return self.dataset.packed(subset)[self.rank :: self.world_size]

    def features(self, key: str, first: int, end: int) -> NDArray[np.float32]:
        """Features `first` to `end` (excluded) of a video, (n, D)."""
        return self.dataset.features(key, first, end)


def share_of_rank(dataset: AnyDataset) -> VideosOfRank | FeaturesOfRank:
    """What this rank evaluates of a data set."""
    if isinstance(dataset, FeatureDataset):
        return FeaturesOfRank(dataset, rank(), world_size())
    return VideosOfRank(dataset, rank(), world_size())


@contextmanager
def shared_raw_writer(
    path: Path, keys: Sequence[str], *, classes: Sequence[str], metadata: Mapping[str, Any]
) -> Iterator[RawWriter]:
    """raw_writer for ranks that each write the windows of their videos; rank 0 joins them, videos as in keys.

    All ranks call it. Each writes a file beside `path`, which is gone at the end.
    """
    if world_size() == 1:
        with raw_writer(path, classes=classes, metadata=metadata) as writer:
            yield writer
        return
    parts = [path.with_name(f".{path.name}.rank{number}") for number in range(world_size())]
    try:
        with raw_writer(parts[rank()], classes=classes, metadata=metadata) as writer:
            yield writer
        barrier()
        if rank() == 0:
            position = {key: number for number, key in enumerate(keys)}
            windows = heapq.merge(*map(read_raw, parts), key=lambda window: position[window.key])
            write_raw(path, windows, classes=classes, metadata=metadata)
        barrier()
    finally:
        parts[rank()].unlink(missing_ok=True)
