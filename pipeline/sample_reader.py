"""Reads the clips of samples; one that cannot be read is skipped, up to a limit, or stops the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .augment import CENTRE, View, draw_view
from .clip_decoder import ClipDecoder, ClipRequest, PendingClips
from .order import stable_seed
from .records import VideoSource
from .samples import Sample
from .settings import DataSettings
from .truncate import truncated
from .windows import clip_frame_numbers


@dataclass(frozen=True)
class PendingSample:
    """A sample that is being read: its clips, or the error that it began with."""

    index: int
    clips: PendingClips | Exception


class SampleReader:
    """Reads the clips of samples from a source of videos.

    training: draw crop, flip and colours of each sample from (seed, epoch, key, window); else the centre.
    remark: called with a line for people for each sample that is skipped.
    """

    def __init__(
        self,
        source: VideoSource,
        samples: Sequence[Sample],
        settings: DataSettings,
        *,
        seed: int,
        training: bool,
        device: torch.device,
        remark: Callable[[str], None],
    ):
        self.source, self.samples, self.settings = source, samples, settings
        self.seed, self.training, self.device, self.remark = seed, training, device, remark
        self.skipped: set[int] = set()
        videos = {sample.video.key: sample.video for sample in samples}
        self.decoder = ClipDecoder(settings, device, videos=list(videos.values()), remark=remark)

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

    def start(self, index: int, epoch: int, clips: torch.Tensor) -> PendingSample | None:
        """Begin to read a sample into `clips` (N, C, L, H, W) uint8; None if it was skipped before."""
        if index in self.skipped:
            return None
        try:
            return PendingSample(index, self.decode(self.sample_at(index, epoch), epoch, clips))
        except (ValueError, OSError) as error:
            return PendingSample(index, error)

    def complete(self, pending: PendingSample) -> bool:
        """Wait for the clips of a sample; False if it cannot be read and is skipped.

        Raises ValueError naming shard and key when `settings.skip_bad` samples were skipped before, or no
        sample is left.
        """
        try:
            if isinstance(pending.clips, Exception):
                raise pending.clips
            pending.clips.wait()
            return True
        except (ValueError, OSError) as error:
            if pending.index not in self.skipped:  # it may have stood in for one before it in the batch
                self._skip(pending.index, error)
            return False

    def _skip(self, index: int, error: Exception) -> None:
        video, reason = self.samples[index].video, " ".join(str(error).split())
        message = f"{video.shard or video.file}: video {video.key}: {reason}"
        if len(self.skipped) >= self.settings.skip_bad:
            raise ValueError(message) from error
        if len(self.skipped) + 1 == len(self.samples):
            raise ValueError(f"loader: none of the {len(self.samples)} samples could be read; last {message}")
        self.skipped.add(index)
        count = f"{len(self.skipped)} of at most {self.settings.skip_bad}"
        self.remark(f"loader: skipped {message} ({count})")

    def decode(self, sample: Sample, epoch: int, clips: torch.Tensor) -> PendingClips:
        """Begin to decode a sample into `clips`. Raises ValueError or OSError when it cannot be read."""
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
        part = self.source.encoded_frames(video.key, frames)
        view = self._view(sample, epoch)
        return self.decoder.start(ClipRequest(video, part.data, part.frames, part.num_frames, view, clips))

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
            least_area=settings.least_area,
            blur=settings.blur,
        )
