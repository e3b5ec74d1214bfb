"""Small videos for the packing tests, made by PyAV alone so that they do not lean on what they test."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MP4 = {"movflags": "+faststart"}
GREY_STEP = 5  # frame number i is the grey 16 + 5 * (i % 44): codecs change it by less than 2


def grey_of(number: int) -> int:
    return 16 + GREY_STEP * (number % 44)


def numbers_in(data: bytes) -> list[int]:
    """The frame numbers painted into a video, in the order shown."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="yuv420p", threads=1) for frame in container.decode(video=0)]
    greys = [frame[: len(frame) * 2 // 3].mean() for frame in frames]
    return [round((grey - 16) / GREY_STEP) for grey in greys]


def write_video(
    path: Path,
    stamps: Iterable[int],
    *,
    clock: Fraction = Fraction(1, 1000),
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rotation: int = 0,
    **options: str,
) -> Path:
    """A video whose frame i is shown from stamps[i] ticks of `clock` on and has its number as its grey."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options=MP4 if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "10", **options})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = *size, "yuv420p", clock
        stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        for number, stamp in enumerate(stamps):
            planes = noise.integers(64, 192, (size[1] * 3 // 2, size[0]), np.uint8)  # in the colours
            planes[: size[1]] = grey_of(number)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = stamp, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
