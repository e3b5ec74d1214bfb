"""Encodes frames into an mp4 of constant rate: BT.601 limited range, no B-frames, equal bytes every time."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ..packets import ACCURATE_RND
from ..temporary_folder import temporary_folder
from .rates import exact_rate

SCALING = Interpolation.BICUBIC | ACCURATE_RND
BT601_TAG, LIMITED_TAG = 6, 1  # FFmpeg's numbers for SMPTE 170M and limited range
BT2020 = 9  # libswscale's number, which PyAV names only from 18 on
COLORSPACES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: BT2020,
    10: BT2020,
}

# No B-frames and no hidden frames: one packet per frame, in the order shown. 300 frames of 170x128 measured:
# VP9 460 kB, 41.0 dB, 0.7 s; H.264 487 kB, 40.9 dB, 0.5 s (with mbtree). Equal bytes need one thread and no
# mbtree: x264's AVX-512 version of it gave other bytes in 5 of 150 runs beside busy processes (LOG.md).
VP9 = {
    "deadline": "realtime",
    "cpu-used": "8",
    "lag-in-frames": "0",
    "auto-alt-ref": "0",
    "crf": "26",
    "b": "0",
}
H264 = {"preset": "veryfast", "crf": "18", "bf": "0", "sc_threshold": "0", "mbtree": "0"}
MP4 = {"movflags": "+faststart", "fflags": "+bitexact"}
ENCODERS = {"vp9": ("libvpx-vp9", VP9), "h264": ("libx264", H264)}


class VideoEncoder:
    """Writes yuv420p frames of one size into an mp4 of constant rate whose index comes first."""

    def __init__(self, path: Path, *, fps: Fraction, codec: str, gop: int, comment: str = ""):
        self.fps, self.gop, self.count, self._clock = fps, gop, 0, 1 / fps
        self.encoder, options = ENCODERS[codec]
        self.options = {**options, "keyint_min": str(gop)}
        self.container = av.open(str(path), "w", format="mp4", options=MP4)
        if comment:
            self.container.metadata["comment"] = comment
        self.stream: av.VideoStream | None = None

    def __enter__(self) -> VideoEncoder:
        return self

    def write(self, frame: av.VideoFrame) -> None:
        """Append a frame. Raises ValueError when its size is odd or not that of the first."""
        if self.stream is None:
            self.stream = self._start(frame.width, frame.height)
        if (frame.width, frame.height) != (self.stream.width, self.stream.height):
            raise ValueError(
                f"frame {self.count}: got {frame.width}x{frame.height}, want {self.stream.width}x"
                f"{self.stream.height} as the first"
            )
        frame.pts, frame.time_base = self.count, self._clock
        frame.pict_type = PictureType.NONE  # else a decoder's key frames become the encoder's
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all frames; 0 before the first."""
        return (self.stream.width, self.stream.height) if self.stream is not None else (0, 0)

    def _start(self, width: int, height: int) -> av.VideoStream:
        if width % 2 or height % 2:
            raise ValueError(f"pictures: got {width}x{height}, want an even width and height (4:2:0 video)")
        stream = self.container.add_stream(self.encoder, rate=self.fps, options=self.options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        context.gop_size, context.thread_count = self.gop, 1
        context.colorspace, context.color_range = BT601_TAG, LIMITED_TAG
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self.container.close()

    def _flush(self) -> None:
        if self.stream is None:
            raise ValueError("no frame to encode, want at least one")
        self.container.mux(self.stream.encode())


def to_bt601(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """A frame of any format as yuv420p of this size, BT.601, limited range."""
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == int(ColorRange.JPEG)
    return scaler.reformat(
        frame,
        width,
        height,
        "yuv420p",
        src_colorspace=COLORSPACES.get(int(frame.colorspace), Colorspace.ITU601),
        dst_colorspace=Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=SCALING,
        threads=1,
    )


def encode_video(
    frames: Iterable[NDArray[np.uint8]], *, fps: float | Fraction, codec: str = "vp9", gop: int = 32
) -> bytes:
    """Encode RGB pictures, each (H, W, 3) uint8, into an mp4 of constant rate; returns its bytes.

    codec: "vp9" or "h264". gop: frames from one key frame to the next. Raises ValueError when there is no
    picture, a side is odd, or the size changes.
    """
    to_yuv = VideoReformatter()
    with temporary_folder() as folder:
        path = folder / "video.mp4"
        with VideoEncoder(path, fps=exact_rate(fps), codec=codec, gop=gop) as encoder:
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                encoder.write(to_bt601(to_yuv, frame, frame.width, frame.height))
        return path.read_bytes()
