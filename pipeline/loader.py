"""Joins data set, order, decoding and augmentation into batches that resume on the very next sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .batch import Batch
from .collate import collate
from .order import next_step
from .prefetch import Prefetch
from .records import VideoSource
from .sample_reader import SampleReader
from .samples import Candidates, EvaluationSampler, Sample, Sampler, TrainingSampler, samples_of
from .settings import DataSettings


class Loader:
    """Batches of one subset for one rank.

    In training it is endless: each epoch is a fresh permutation, its last step is filled with the epoch's
    first samples. In evaluation it is one pass in the subset's order, every sample once over all ranks and
    the windows of a video on one rank; no batch is larger than what is left. All ranks do equal steps of
    equal size: one that has less left than another adds black clips, flagged in `Batch.padding`.

    A thread decodes `settings.prefetch` batches ahead. `state_dict` is the epoch and step of the next batch
    to be handed out, whatever was decoded ahead: a loader that loads it goes on with the very same batches.
    A sample that cannot be read raises ValueError naming shard and key; while fewer than `skip_bad` were met,
    the epoch's next readable one comes instead (in evaluation black clips), and `remark` is called
    with a line that says so.
    """

    def __init__(
        self,
        source: VideoSource,
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
        self.settings, self.training, self.device = settings, training, torch.device(device)
        self.samples = samples_of(
            source.packed(subset), window_seconds=settings.window_seconds, overlap=settings.window_overlap
        )
        self.labels = {name: number for number, name in enumerate(source.classes)}
        share = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        self.sampler: Sampler
        if training:
            self.sampler = TrainingSampler(len(self.samples), seed=seed, **share)
        else:
            self.sampler = EvaluationSampler([sample.video.key for sample in self.samples], **share)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.reader = SampleReader(
            source, self.samples, settings, seed=seed, training=training, device=self.device, remark=remark
        )
        self._epoch, self._step = 0, 0
        self._ahead: Prefetch[tuple[int, int], Batch] | None = None
        # The thread's kernels run beside the training step's, not between them.
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]

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

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        torch.get_num_threads()  # settles this thread's own number, which _make would otherwise set to 1
        ahead = self._ahead = Prefetch(self._steps(), self._make, self.settings.prefetch)
        try:
            for (epoch, step), batch in ahead:
                self._epoch, self._step = next_step(epoch, step, steps=self.steps_per_epoch)
                if not self.training and self._step == 0:
                    self._epoch = 0  # the next pass is the same one again
                if batch.clips.is_cuda:  # made on the thread's stream, used on the caller's
                    batch.clips.record_stream(torch.cuda.current_stream(batch.clips.device))
                yield batch
        finally:
            ahead.close()

    def close(self) -> None:
        """Stop and join the decoding thread; iterating again starts a new one at the current step."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _steps(self) -> Iterator[tuple[int, int]]:
        """(epoch, step) from the current one on: without end in training, else to the end of the pass."""
        epoch, step = self._epoch, self._step
        while True:
            yield epoch, step
            epoch, step = next_step(epoch, step, steps=self.steps_per_epoch)
            if not self.training and step == 0:
                return

    def _make(self, position: tuple[int, int]) -> Batch:
        # One thread of torch's for this one: a second pool of them would slow down the training step's own,
        # as OpenMP threads stop spinning between operations where they outnumber the cores (measured: x 1.8)
        torch.set_num_threads(1)
        if self._stream is None:
            return self._batch_at(*position)
        with torch.cuda.stream(self._stream):
            batch = self._batch_at(*position)
            self._stream.synchronize()
        return batch

    def _batch_at(self, epoch: int, step: int) -> Batch:
        """The batch of a step: a function of (epoch, step) and of the samples alone."""
        epoch = epoch if self.training else 0  # evaluation is the same in every epoch
        taken = [self._read_first(candidates, epoch) for candidates in self.sampler.candidates(epoch, step)]
        return collate(
            [sample for sample, _ in taken],
            [self.reader.black_clips() if clips is None else clips for _, clips in taken],
            padding=[clips is None for _, clips in taken],
            labels=self.labels,
            min_action_overlap=self.settings.min_action_overlap,
        )

    def _read_first(self, candidates: Candidates, epoch: int) -> tuple[Sample, torch.Tensor | None]:
        """The first of the candidates that can be read, and its clips; no clips where none can."""
        for index in candidates:
            clips = self.reader.read(int(index), epoch)
            if clips is not None:
                return self.samples[index], clips
        return self.samples[candidates[0] if len(candidates) else 0], None
