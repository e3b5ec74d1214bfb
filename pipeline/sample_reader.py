"""Decodes the clips of one sample; one that cannot be read is skipped, up to a limit, or stops the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .augment import CENTRE, View, draw_view
from .decode import decode_clips
from .order import stable_seed
from .records import VideoSource
from .samples import Sample
from .settings import DataSettings
from .windows import clip_frame_numbers


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

    def read(self, index: int, epoch: int) -> torch.Tensor | None:
        """The clips (N, C, L, H, W) uint8 of a sample; None if it cannot be read and is skipped.

        Raises ValueError naming shard and key when `settings.skip_bad` samples were skipped before, or no
        sample is left.
        """
        if index in self.skipped:
            return None
        try:
            return self.decode(self.samples[index], epoch)
        except (ValueError, OSError) as error:
            self._skip(index, error)
            return None

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

    def decode(self, sample: Sample, epoch: int) -> torch.Tensor:
        """The clips of a sample. Raises ValueError or OSError when it cannot be read."""
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
        return decode_clips(
            part.data,
            part.frames,
            codec=video.codec,
            num_frames=part.num_frames,
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

    def black_clips(self) -> torch.Tensor:
        """What stands in for the clips of a sample that was not read."""
        s = self.settings
        shape = (s.num_clips, 3, s.clip_frames, s.crop, s.crop)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)
