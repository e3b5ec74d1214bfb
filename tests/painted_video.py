"""Videos whose pictures say which frame they are: the number painted as 12 bright or dark blocks."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np

OPTIONS = {
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "libvpx": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "libx264": {"preset": "veryfast", "crf": "18", "bf": "2", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none:bframes=2:scenecut=0"},
}


def painted(number: int, height: int, width: int) -> np.ndarray:
    """The picture of a frame, (H, W, 3) uint8: 3 rows of 4 blocks, bit 0 first; bright is 1."""
    bits = np.array([number >> bit & 1 for bit in range(12)]).reshape(3, 4)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return np.repeat((30 + 190 * bits[rows][:, columns, None]).astype(np.uint8), 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number painted in a picture (H, W, 3), from the middle of each block."""
    height, width = picture.shape[:2]
    rows = [height * (2 * i + 1) // 6 for i in range(3)]
    columns = [width * (2 * i + 1) // 8 for i in range(4)]
    bright = picture[rows][:, columns].mean(axis=2) > 125
    return int((bright.reshape(-1) << np.arange(12)).sum())


def encode(
    pictures: Iterable[np.ndarray | av.VideoFrame],
    *,
    codec: str = "libvpx-vp9",
    container: str = "mp4",
    fps: int = 25,
    gop: int = 16,
    first_pts: int = 0,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode pictures (H, W, 3) uint8 or ready frames; the first frame's time stamp is `first_pts` frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.codec_context.gop_size = gop
        stream.options = OPTIONS.get(codec, {}) if options is None else options
        for number, picture in enumerate(pictures):
            frame = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format=pix_fmt, threads=1
                )
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
                stream.codec_context.color_range = frame.color_range
                stream.codec_context.colorspace = frame.colorspace
            frame.pts, frame.time_base = first_pts + number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def painted_video(num_frames: int, *, size: tuple[int, int] = (64, 64), **options) -> bytes:
    """An encoded video of `num_frames` painted frames of `size` (height, width)."""
    return encode((painted(number, *size) for number in range(num_frames)), **options)
