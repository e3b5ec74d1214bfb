"""Reads the clips of samples of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import CENTRE, View, draw_view
from .clip_decoder import ClipDecoder, ClipRequest, PendingClips
from .order import stable_seed
from .pictures import Slots, pictures_of
from .reader import Pending, Reader
from .records import PackedVideo, VideoSource
from .samples import Sample
from .settings import DataSettings
from .shared_pictures import PendingWindow
from .windows import clip_frame_numbers


def _packed(sample: Sample) -> PackedVideo:
    assert isinstance(sample.video, PackedVideo), "a sample of a data set of videos"
    return sample.video


class SampleReader(Reader):
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
        super().__init__(samples, settings, seed=seed, training=training, remark=remark)
        self.source = source
        videos = {
            sample.video.key: sample.video for sample in samples if isinstance(sample.video, PackedVideo)
        }
        self.decoder = ClipDecoder(settings, device, videos=list(videos.values()), remark=remark)
        self._last: PendingWindow | None = None  # that was begun, of evaluation

    def empty(self, batch_size: int, *, pin_memory: bool) -> torch.Tensor:
        """Room for the clips of a batch, (B, N, C, L, H, W) uint8."""
        s = self.settings
        shape = (batch_size, s.num_clips, 3, s.clip_frames, s.crop, s.crop)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)

    def close(self) -> None:
        """Stop and join the decoder's threads."""
        self.decoder.close()
        self._last = None

    def begin(self, sample: Sample, epoch: int, into: torch.Tensor) -> Pending:
        """Begin to decode a sample into its clips (N, C, L, H, W) uint8."""
        video, frames, pictures = _packed(sample), self._frames(sample, epoch), pictures_of(into)
        view = self._view(sample, epoch)

        def decode(slots: Slots) -> PendingClips:
            part = self.source.encoded_frames(video.key, frames[slots])
            request = ClipRequest(video, part.data, part.frames, part.num_frames, view, pictures, slots)
            return self.decoder.start(request)

        window = PendingWindow(video.key, frames, pictures, decode, self._last)
        if not self.training:
            self._last = window
        return window

    def frame_numbers(self, samples: Sequence[Sample]) -> torch.Tensor:
        """(B, N, L) int64: the frames that samples of evaluation show of their videos."""
        return torch.from_numpy(np.stack([self._frames(sample, epoch=0) for sample in samples]))

    def _frames(self, sample: Sample, epoch: int) -> NDArray[np.int64]:
        """(N, L): of each clip."""
        settings, video = self.settings, _packed(sample)
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
        return frames

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
