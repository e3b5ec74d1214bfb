"""Samples (windows of videos), and which of them the batches of a rank hold, in training and in evaluation.

A sampler states for each slot of a batch the samples that may fill it, as indices: the first that can be
read does. Where none can, the slot is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .features.records import FeatureSource, FeatureVideo
from .order import epoch_order, indices_by_video, rank_indices, steps_per_epoch
from .records import AnyVideo, PackedVideo, VideoSource
from .settings import DataSettings
from .windows import Window, windows_of

Candidates = Sequence[int] | NDArray[np.int64]


def long_enough(video: PackedVideo | FeatureVideo, seconds: float) -> PackedVideo | FeatureVideo:
    """The video without its actions of less than so many seconds."""
    kept = tuple(action for action in video.actions if action.end - action.start >= seconds)
    return video if len(kept) == len(video.actions) else replace(video, actions=kept)


@dataclass(frozen=True)
class Sample:
    """One window of one video.

    end: seconds at which it ends to show the video, if that is before its own end and the video's.
    """

    video: AnyVideo
    window: Window
    end: float | None = None

    @property
    def shown_end(self) -> float:
        """Seconds at which what it shows of the video ends."""
        assert self.video.duration is not None, "a packed video has a duration"
        return min(self.window[1], self.video.duration, *([] if self.end is None else [self.end]))


def samples_of(
    videos: Iterable[AnyVideo], *, window_seconds: float | None, overlap: float, pad: bool = False
) -> list[Sample]:
    """The windows of packed videos, those of a video in a row; see `windows_of`."""
    samples: list[Sample] = []
    for video in videos:
        assert video.duration is not None, "a packed video has a duration"
        windows = windows_of(video.duration, window_seconds=window_seconds, overlap=overlap, pad=pad)
        samples += [Sample(video, window) for window in windows]
    return samples


def samples_of_subset(
    source: VideoSource | FeatureSource, subset: str, settings: DataSettings, *, training: bool
) -> Iterator[Sample]:
    """The windows of a subset as the settings cut them; in training without actions that are too short."""
    least = settings.min_action_seconds if training else 0.0
    for video in source.packed(subset):
        yield from samples_of(
            [long_enough(video, least)],
            window_seconds=settings.window_seconds,
            overlap=settings.window_overlap,
            pad=settings.pad_short_videos,
        )


class Sampler(Protocol):
    """What the Loader asks for; all ranks run `steps_per_epoch` steps of equal size."""

    @property
    def steps_per_epoch(self) -> int: ...

    def candidates(self, epoch: int, step: int) -> list[Candidates]:
        """For each slot of the batch of a step the samples that may fill it."""


@dataclass(frozen=True)
class TrainingSampler:
    """Every epoch a fresh permutation of all samples; its last step is filled with its first samples.

    Instead of a sample that cannot be read comes the next one of the epoch.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int
    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.num_samples, batch_size=self.batch_size, world_size=self.world_size)

    def candidates(self, epoch: int, step: int) -> list[Candidates]:
        order = epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
        indices = rank_indices(
            self.num_samples,
            step,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )
        return [np.roll(order, -index) for index in indices]


class EvaluationSampler:
    """Every sample once over all ranks, in the given order, the windows of a video on one rank.

    keys: the video of each sample. No batch is larger than what the rank with the most samples has left; a
    rank that has fewer is padded.
    """

    def __init__(self, keys: Sequence[str], *, batch_size: int, rank: int, world_size: int):
        shares = [indices_by_video(keys, rank=r, world_size=world_size) for r in range(world_size)]
        self.indices, self.batch_size = shares[rank], batch_size
        self.largest_share = max(len(share) for share in shares)
        self.steps_per_epoch = steps_per_epoch(self.largest_share, batch_size=batch_size, world_size=1)

    def candidates(self, epoch: int, step: int) -> list[Candidates]:
        start = step * self.batch_size
        size = min(self.batch_size, self.largest_share - start)
        taken: list[Candidates] = [[int(index)] for index in self.indices[start : start + size]]
        return taken + [[]] * (size - len(taken))
