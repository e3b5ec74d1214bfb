"""Joins data set, order, decoding and augmentation into batches that resume on the very next sample."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .augment import CENTRE, View, draw_view
from .batch import Batch
from .decode import decode_clips
from .order import epoch_order, indices_by_video, next_step, rank_indices, stable_seed, steps_per_epoch
from .prefetch import Prefetch
from .settings import DataSettings
from .windows import Window, clip_frame_numbers, segments_in, windows_of

if TYPE_CHECKING:
    from .records import PackedVideo, VideoSource


@dataclass(frozen=True)
class Sample:
    """One window of one video."""

    video: PackedVideo
    window: Window


class Loader:
    """Batches of one subset for one rank.

    In training it is endless: each epoch is a fresh permutation, its last step is filled up with the epoch's
    first samples. In evaluation it is one pass in the subset's order, every sample once over all ranks and
    the windows of a video on one rank; no batch is larger than what is left. All ranks do equal steps of
    equal size: one that has less left than another adds black clips, flagged in `Batch.padding`.

    A thread decodes `settings.prefetch` batches ahead. `state_dict` is the position of the next batch to be
    handed out, whatever was decoded ahead: a loader that loads it goes on with the very same batches.
    A sample that cannot be read raises ValueError naming shard and key; while fewer than `skip_bad` were met,
    the epoch's next readable one takes its place instead (in evaluation black clips), told on stderr.
    """

    def __init__(
        self,
        dataset: VideoSource,
        settings: DataSettings,
        *,
        subset: str,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
        training: bool,
    ):
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"loader: got batch size {batch_size}, rank {rank} of {world_size}; want 1 or more each"
            )
        self.dataset, self.settings, self.seed, self.training = dataset, settings, seed, training
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.device = torch.device(device)
        self.samples = [
            Sample(video, window)
            for video in dataset.packed(subset)
            for window in windows_of(
                video.duration, window_seconds=settings.window_seconds, overlap=settings.window_overlap
            )
        ]
        self._shares = [] if training else self._evaluation_shares()
        most = len(self.samples) if training else max(map(len, self._shares))
        ranks = world_size if training else 1
        self.steps_per_epoch = steps_per_epoch(most, batch_size=batch_size, world_size=ranks)
        self.label_of = {name: number for number, name in enumerate(dataset.classes)}
        self.bad: set[int] = set()
        self._epoch, self._step = 0, 0
        self._ahead: Prefetch | None = None
        # The thread's kernels run beside the training step's, not between them.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

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
        ahead = self._ahead = Prefetch(
            self._positions_from(self._epoch, self._step), self._make, self.settings.prefetch
        )
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
        """Stop and join the decoding thread; iterating again starts a new one at the current position."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _positions_from(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
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

    def _evaluation_shares(self) -> list[np.ndarray]:
        """The sample numbers that each rank evaluates: all windows of a video on one rank."""
        keys = [sample.video.key for sample in self.samples]
        return [indices_by_video(keys, rank=r, world_size=self.world_size) for r in range(self.world_size)]

    def _batch_at(self, epoch: int, step: int) -> Batch:
        """The batch of a position: a function of the position and of the samples alone."""
        if not self.training:
            return self._evaluation_batch(step)
        order = epoch_order(len(self.samples), seed=self.seed, epoch=epoch)
        how = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        taken = [
            self._first_readable(order, int(place), epoch) for place in rank_indices(len(order), step, **how)
        ]
        return self._collate([sample for sample, _ in taken], [clips for _, clips in taken])

    def _evaluation_batch(self, step: int) -> Batch:
        start = step * self.batch_size
        size = min(self.batch_size, max(map(len, self._shares)) - start)
        numbers = [int(number) for number in self._shares[self.rank][start : start + size]]
        fill = size - len(numbers)
        clips = [self._try(number, 0) for number in numbers] + [None] * fill
        return self._collate([self.samples[number] for number in numbers + [0] * fill], clips)

    def _first_readable(self, order: np.ndarray, place: int, epoch: int) -> tuple[Sample, torch.Tensor]:
        """The sample at `place` of the epoch, or the next one that can be read, and its clips."""
        tried = ((self.samples[number], self._try(int(number), epoch)) for number in np.roll(order, -place))
        return next((sample, clips) for sample, clips in tried if clips is not None)

    def _try(self, number: int, epoch: int) -> torch.Tensor | None:
        """The clips of a sample; None if it cannot be read and may be skipped."""
        if number in self.bad:
            return None
        try:
            return self._decode(self.samples[number], epoch)
        except (ValueError, OSError) as error:
            self._count_bad(number, self.samples[number], error)
            return None

    def _count_bad(self, number: int, sample: Sample, error: Exception) -> None:
        video, reason = sample.video, " ".join(str(error).split())
        told = f"{video.shard or video.file}: video {video.key}: {reason}"
        if len(self.bad) >= self.settings.skip_bad:
            raise ValueError(told) from error
        self.bad.add(number)
        if len(self.bad) == len(self.samples):
            raise ValueError(f"loader: none of the {len(self.bad)} samples could be read; last {told}")
        count = f"{len(self.bad)} of at most {self.settings.skip_bad}"
        print(f"loader: skipped {told} ({count})", file=sys.stderr)

    def _decode(self, sample: Sample, epoch: int) -> torch.Tensor:
        settings, video = self.settings, sample.video
        frames = clip_frame_numbers(
            sample.window,
            fps=video.fps,
            num_frames=video.num_frames,
            num_clips=settings.num_clips,
            clip_frames=settings.clip_frames,
            stride_frames=settings.stride_frames,
        )
        if settings.shuffle_frames:
            rng = np.random.default_rng(stable_seed("frames", self.seed, epoch, video.key, *sample.window))
            frames = rng.permuted(frames, axis=1)
        data, frames, num_frames = self.dataset.encoded_frames(video.key, frames)
        return decode_clips(
            data,
            frames,
            codec=video.codec,
            num_frames=num_frames,
            resize=settings.resize,
            crop=settings.crop,
            view=self._view(sample, epoch),
            device=self.device,
            decode_chunk_frames=settings.decode_chunk_frames,
        )

    def _view(self, sample: Sample, epoch: int) -> View:
        if not self.training:
            return CENTRE
        settings = self.settings
        return draw_view(
            self.seed,
            epoch,
            sample.video.key,
            sample.window,
            flip=settings.flip,
            random_crop=settings.random_crop,
            color=settings.color,
        )

    def _collate(self, samples: Sequence[Sample], clips: Sequence[torch.Tensor | None]) -> Batch:
        """One batch; a sample without clips gets black ones and only fills up."""
        truths = [self._truth(sample) for sample in samples]
        pixels = [self._black() if one is None else one for one in clips]
        return Batch(
            clips=pixels[0][None] if len(pixels) == 1 else torch.stack(pixels),
            keys=tuple(sample.video.key for sample in samples),
            windows=torch.tensor([sample.window for sample in samples], dtype=torch.float64),
            durations=torch.tensor([sample.video.duration for sample in samples], dtype=torch.float64),
            gt_segments=tuple(segments for segments, _ in truths),
            gt_labels=tuple(labels for _, labels in truths),
            padding=tuple(one is None for one in clips),
        )

    def _black(self) -> torch.Tensor:
        s = self.settings
        shape = (s.num_clips, 3, s.clip_frames, s.crop, s.crop)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def _truth(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """Segments (A, 2) and labels (A,) of a window; if it is the whole video every action counts."""
        actions = sample.video.actions
        whole = sample.window == (0.0, sample.video.duration)
        segments, kept = segments_in(
            [(action.start, action.end) for action in actions],
            sample.window,
            min_overlap=0.0 if whole else self.settings.min_action_overlap,
        )
        labels = [self.label_of[actions[number].label] for number in kept]
        return torch.from_numpy(segments), torch.tensor(labels, dtype=torch.int64)
