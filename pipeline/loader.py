"""Joins data set, order, decoding and augmentation into batches that resume on the very next sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from .batch import Batch
from .collate import collate
from .features.reader import FeatureReader
from .features.records import FeatureSource
from .limits import set_limits
from .order import next_step
from .prefetch import Prefetch
from .reader import PendingSample, Reader
from .records import VideoSource
from .sample_reader import SampleReader
from .samples import Candidates, EvaluationSampler, Sample, Sampler, TrainingSampler, samples_of_subset
from .settings import DataSettings


@dataclass(frozen=True)
class _BegunBatch:
    """A batch that is being read: what each slot may show, and its first sample that was not skipped."""

    epoch: int
    candidates: Sequence[Candidates]
    inputs: torch.Tensor
    started: Sequence[PendingSample | None]


class Loader:
    """Batches of one subset for one rank.

    In training it is endless: each epoch is a fresh permutation, its last step is filled with the epoch's
    first samples. In evaluation it is one pass in the subset's order, every sample once over all ranks and
    the windows of a video on one rank; no batch is larger than what is left. All ranks do equal steps of
    equal size: one that has less left than another adds black clips, flagged in `Batch.padding`.

    With `settings.num_features` the source is a feature file: all of this holds, with features for clips.

    A thread makes `settings.prefetch` batches ahead, whose videos `settings.decode_workers` threads decode.
    Batches lie in host memory (pinned, where `device` is a GPU), so the device has at most the decode chunks
    of the next; of an evaluation the last one stays until the next is there, which shows some of its frames.
    `state_dict` is the epoch and step of the next batch to be handed out, whatever was decoded ahead: a
    loader that loads it goes on with the very same. A sample that cannot be read raises ValueError
    naming shard and key; while fewer than `skip_bad` were met, the epoch's next readable one comes instead
    (in evaluation black clips), and `remark` is called with a line that says so.
    """

    def __init__(
        self,
        source: VideoSource | FeatureSource,
        settings: DataSettings,
        *,
        subset: str,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
        training: bool,
        remark: Callable[[str], None],
    ):
        assert batch_size >= 1 and 0 <= rank < world_size, (batch_size, rank, world_size)
        self.settings, self.training = settings, training
        set_limits(settings.limits)
        device = torch.device(device)
        self._pin_memory = device.type == "cuda"
        self.samples = list(samples_of_subset(source, subset, settings, training=training))
        self.labels = {name: number for number, name in enumerate(source.classes)}
        share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        self.sampler: Sampler
        if training:
            self.sampler = TrainingSampler(len(self.samples), seed=seed, **share)
        else:
            self.sampler = EvaluationSampler([sample.video.key for sample in self.samples], **share)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.reader = _reader(
            source, self.samples, settings, seed=seed, training=training, device=device, remark=remark
        )
        self._epoch, self._step = 0, 0
        self._ahead: Prefetch[tuple[int, int], _BegunBatch, Batch] | None = None
        self._is_begun = False  # and nothing was taken of it yet

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(
                f"loader state: got epoch {epoch}, step {step}, want a step below {self.steps_per_epoch}; "
                "the data set, the batch size or the number of processes changed"
            )
        self.close()
        self._epoch, self._step = epoch, step

    def begin(self) -> None:
        """Begin to decode, so that the first batches are there once they are iterated over."""
        self.close()
        torch.get_num_threads()  # settles this thread's own number, which decoders would otherwise set to 1
        self._ahead = Prefetch(self._steps(), self._begin, self._complete, self.settings.prefetch)
        self._is_begun = True

    def __iter__(self) -> Iterator[Batch]:
        if not self._is_begun:
            self.begin()
        ahead, self._is_begun = self._ahead, False
        assert ahead is not None, "begun"
        try:
            for (epoch, step), batch in ahead:
                self._epoch, self._step = next_step(epoch, step, steps=self.steps_per_epoch)
                if not self.training and self._step == 0:
                    self._epoch = 0  # the next pass is the same one again
                yield batch
                del batch  # or two would be held while the next is waited for
        finally:
            ahead.close()
            if self._ahead is ahead:
                self.close()

    def close(self) -> None:
        """Stop and join the threads; iterating again starts new ones at the current step."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._is_begun = False
        self.reader.close()

    def _steps(self) -> Iterator[tuple[int, int]]:
        """(epoch, step) from the current one on: without end in training, else to the end of the pass."""
        epoch, step = self._epoch, self._step
        while True:
            yield epoch, step
            epoch, step = next_step(epoch, step, steps=self.steps_per_epoch)
            if not self.training and step == 0:
                return

    def _begin(self, position: tuple[int, int]) -> _BegunBatch:
        """Begin to decode the batch of an (epoch, step): a function of these and of the samples alone."""
        epoch, step = position
        torch.set_num_threads(1)  # as in the decoders' threads
        epoch = epoch if self.training else 0  # evaluation is the same in every epoch
        candidates = self.sampler.candidates(epoch, step)
        inputs = self.reader.empty(len(candidates), pin_memory=self._pin_memory)
        started = [
            self._start_first(slot, epoch, into) for slot, into in zip(candidates, inputs, strict=True)
        ]
        return _BegunBatch(epoch, candidates, inputs, started)

    def _complete(self, begun: _BegunBatch) -> Batch:
        """Wait until all of a batch is there."""
        taken = [
            self._complete_first(slot, begun.epoch, into, pending)
            for slot, into, pending in zip(begun.candidates, begun.inputs, begun.started, strict=True)
        ]
        samples = [sample for sample, _ in taken]
        return collate(
            samples,
            begun.inputs,
            padding=[not was_read for _, was_read in taken],
            frames=None if self.training else self.reader.frame_numbers(samples),
            labels=self.labels,
            min_action_overlap=self.settings.min_action_overlap,
        )

    def _start_first(self, candidates: Candidates, epoch: int, into: torch.Tensor) -> PendingSample | None:
        """Begin to read the first of the candidates that was not skipped yet."""
        started = (self.reader.start(int(index), epoch, into) for index in candidates)
        return next((pending for pending in started if pending is not None), None)

    def _complete_first(
        self, candidates: Candidates, epoch: int, into: torch.Tensor, pending: PendingSample | None
    ) -> tuple[Sample, bool]:
        """The first of the candidates that can be read, and whether one can; if not, all is zero."""
        while pending is not None:
            if self.reader.complete(pending):
                return self.reader.sample_at(pending.index, epoch), True
            pending = self._start_first(candidates, epoch, into)
        into.zero_()
        return self.samples[candidates[0] if len(candidates) else 0], False


def _reader(
    source: VideoSource | FeatureSource,
    samples: Sequence[Sample],
    settings: DataSettings,
    *,
    seed: int,
    training: bool,
    device: torch.device,
    remark: Callable[[str], None],
) -> Reader:
    """What reads the samples: features, where the settings state their width, or clips."""
    if settings.num_features is not None:
        return FeatureReader(
            cast(FeatureSource, source),
            samples,
            settings,
            seed=seed,
            training=training,
            remark=remark,
        )
    return SampleReader(
        cast(VideoSource, source),
        samples,
        settings,
        seed=seed,
        training=training,
        device=device,
        remark=remark,
    )
