"""The loop that one would write first to detect in a file: PyAV decodes it, its windows become batches.

One process, one pass through the file's frames, FFmpeg's own threads. The clips are those of predict: the
same moments, resized and cropped in the same way, but of the file itself, not of what packing makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.augment import CENTRE, apply_view
from pipeline.batch import Batch
from pipeline.settings import DataSettings
from pipeline.windows import Window, clip_frame_numbers, windows_of


def plain_batches(file: Path, key: str, settings: DataSettings, *, fps: Fraction) -> Iterator[Batch]:
    """A batch of one window at a time, in order. fps: to which packing resamples, 0: it keeps the file's."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or Fraction(25)
        ticks, tick = (
            (stream.duration, stream.time_base)
            if stream.duration and stream.time_base
            else (container.duration or 0, Fraction(1, av.time_base))
        )
        duration = float(ticks * tick)
        windows = windows_of(
            duration,
            window_seconds=settings.window_seconds,
            overlap=settings.window_overlap,
            pad=settings.pad_short_videos,
        )
        frames = [_frames_of(window, settings, duration, rate=rate, fps=fps or rate) for window in windows]
        images = _images(container, stream, np.unique(np.concatenate(frames)), settings)
        held: dict[int, torch.Tensor] = {}
        reached = -1
        for window, clips in zip(windows, frames, strict=True):
            # No later window shows what is before this one's first frame; the last may have to be repeated.
            least = min(reached, int(clips.min()))
            held = {number: image for number, image in held.items() if number >= least}
            while reached < clips.max() and (decoded := next(images, None)) is not None:
                reached = decoded[0]
                held[reached] = decoded[1]
            yield _batch(clips, held, key, window, duration)


def _frames_of(
    window: Window, settings: DataSettings, duration: float, *, rate: Fraction, fps: Fraction
) -> NDArray[np.int64]:
    """(N, L) numbers of the file's own frames that are on screen where predict's clips show a packed one."""
    packed = clip_frame_numbers(
        window,
        fps=float(fps),
        num_frames=max(1, round(duration * fps)),
        num_clips=settings.num_clips,
        clip_frames=settings.clip_frames,
        stride_frames=settings.stride_frames,
    )
    return packed if fps == rate else np.floor((packed + 0.5) * float(rate / fps)).astype(np.int64)


def _images(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: NDArray[np.int64],
    settings: DataSettings,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The wanted frames by number, (3, crop, crop) uint8, in order; those that the file lacks are missing."""
    left = set(wanted.tolist())
    for number, frame in enumerate(container.decode(stream)):
        if number in left:
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))[None]  # (1, H, W, 3)
            yield number, apply_view(pixels, CENTRE, resize=settings.resize, crop=settings.crop)[0]


def _batch(
    clips: NDArray[np.int64], held: dict[int, torch.Tensor], key: str, window: Window, duration: float
) -> Batch:
    """The window's clips, (1, N, 3, L, crop, crop); instead of a frame that is not there comes the last."""
    if not held:
        raise ValueError(f"{key}: no frame could be decoded; `leantad predict` says what is wrong with it")
    last = max(held)
    shown = torch.stack([held.get(number, held[last]) for number in clips.reshape(-1).tolist()])
    shown = shown.reshape(*clips.shape, *shown.shape[1:]).transpose(1, 2)[None]
    end = torch.tensor([min(window[1], duration)], dtype=torch.float64)
    return Batch(
        inputs=shown.contiguous(),
        keys=(key,),
        windows=torch.tensor([window], dtype=torch.float64),
        durations=torch.tensor([duration], dtype=torch.float64),
        ends=end,
        gt_segments=(torch.zeros(0, 2, dtype=torch.float64),),
        gt_labels=(torch.zeros(0, dtype=torch.int64),),
        padding=(False,),
    )
