"""Reads samples, clips or features: one that cannot be read is skipped, up to a limit, or stops the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .samples import Sample
from .settings import DataSettings
from .truncate import truncated


class Pending(Protocol):
    """What is being read into its place."""

    def wait(self) -> None:
        """Until it is there. Raises ValueError or OSError when it cannot be read."""


@dataclass(frozen=True)
class PendingSample:
    """A sample that is being read, or the error that it began with."""

    index: int
    data: Pending | Exception


class UnreadableSample(ValueError):
    """A sample that cannot be read, after as many as settings.skip_bad; the message names file and key."""


class Reader(ABC):
    """Reads samples into tensors of a batch. remark: called with a line for people for each one skipped."""

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: DataSettings,
        *,
        seed: int,
        training: bool,
        remark: Callable[[str], None],
    ):
        self.samples, self.settings, self.remark = samples, settings, remark
        self.seed, self.training = seed, training
        self.skipped: set[int] = set()

    def sample_at(self, index: int, epoch: int) -> Sample:
        """The sample as it is seen in an epoch: in training a random part of its window, if so set."""
        settings, sample = self.settings, self.samples[index]
        if not self.training or settings.truncate_to == 1:
            return sample
        return truncated(
            sample,
            seed=self.seed,
            epoch=epoch,
            least=settings.truncate_to,
            min_overlap=settings.min_action_overlap,
            pad=settings.pad_short_videos,
        )

    @abstractmethod
    def empty(self, batch_size: int, *, pin_memory: bool) -> torch.Tensor:
        """Room for a batch, (B, ...)."""

    @abstractmethod
    def begin(self, sample: Sample, epoch: int, into: torch.Tensor) -> Pending:
        """Begin to read a sample into its place. Raises ValueError or OSError when it cannot be read."""

    @abstractmethod
    def frame_numbers(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        """(B, N, L) int64: the frames that samples of evaluation show of their videos; None of features."""

    @abstractmethod
    def close(self) -> None:
        """Stop and join the threads, if there are any."""

    def start(self, index: int, epoch: int, into: torch.Tensor) -> PendingSample | None:
        """Begin to read a sample into its place in a batch; None if it was skipped before."""
        if index in self.skipped:
            return None
        try:
            return PendingSample(index, self.begin(self.sample_at(index, epoch), epoch, into))
        except (ValueError, OSError) as error:
            return PendingSample(index, error)

    def complete(self, pending: PendingSample) -> bool:
        """Wait until a sample is there; False if it cannot be read and is skipped.

        Raises UnreadableSample naming file and key when `skip_bad` samples were skipped before, ValueError
        if no sample is left.
        """
        try:
            if isinstance(pending.data, Exception):
                raise pending.data
            pending.data.wait()
            return True
        except (ValueError, OSError) as error:
            if pending.index not in self.skipped:  # it may have stood in for one before it in the batch
                self._skip(pending.index, error)
            return False

    def _skip(self, index: int, error: Exception) -> None:
        video, reason = self.samples[index].video, " ".join(str(error).split())
        message = f"{video.where}: video {video.key}: {reason}"
        if len(self.skipped) >= self.settings.skip_bad:
            raise UnreadableSample(message) from error
        if len(self.skipped) + 1 == len(self.samples):
            raise ValueError(f"loader: none of the {len(self.samples)} samples could be read; last {message}")
        self.skipped.add(index)
        self.remark(f"loader: skipped {message} ({len(self.skipped)} of at most {self.settings.skip_bad})")
