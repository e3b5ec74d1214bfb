"""Re-encode a video for training: constant rate, small, upright, BT.601, closed groups of pictures.

Frame k of the result is what the source shows k / fps seconds after its first displayed frame. Memory is a
few frames whatever the length; the source is decoded once. Equal input gives equal bytes.
Colours become BT.601 limited range, which both training decoders assume; HDR is not tone-mapped.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ..packets import ACCURATE_RND
from .probe import FrameReader, Unreadable, VideoMetadata, probe, rate_of

# Containers round stamps to ticks of their clock (1 ms in Matroska): a stamp may be that much too late.
STAMP_ROUNDING = Fraction(1, 1000)
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


@dataclass(frozen=True)
class EncodingSpec:
    """How a video is encoded. fps: frames per second, short_side: pixels (even); 0 keeps the source's."""

    codec: str = "vp9"
    fps: Fraction = Fraction(15)
    short_side: int = 128
    gop: int = 32  # frames from one key frame to the next; each group decodes on its own
    upscale: bool = False  # let fps and short_side exceed the source's


def transcode(source: str | Path | bytes, spec: EncodingSpec) -> tuple[bytes, VideoMetadata, VideoMetadata]:
    """Re-encode a video; returns mp4 bytes, metadata of the source, metadata of those bytes decoded again.

    The result lasts as long as the source to half a frame; its picture is upright, pixels square, sides even.
    Raises Unreadable when the source is damaged.
    """
    fps = _target_rate(source, spec)
    reader = FrameReader(source)
    with tempfile.TemporaryDirectory(prefix="leantad-") as folder:
        path = Path(folder) / "video.mp4"
        with _Encoder(
            path, fps=fps, codec=spec.codec, gop=spec.gop, comment=encoding_comment(spec)
        ) as encoder:
            upright = _Upright(spec)
            for frame in resample(reader, fps):
                encoder.write(upright(frame, reader))
        data = path.read_bytes()
    result = probe(data)
    if result.num_frames != encoder.count or result.fps != fps:
        raise Unreadable(reader.name, f"encoded {encoder.count} frames, {result.num_frames} came back")
    return data, reader.metadata, result


def encoding_comment(spec: EncodingSpec) -> str:
    """The comment that `transcode` writes into its files."""
    upscale = " upscale" if spec.upscale else ""
    return f"leantad {spec.codec} fps {spec.fps} short side {spec.short_side} gop {spec.gop}{upscale}"


def has_encoding(source: str | Path | bytes, spec: EncodingSpec) -> bool:
    """Whether `transcode` made this file by this very spec: encoding it again would only blur it.

    Nothing is decoded. The comment may have survived an editor; codec and key frames hardly do.
    """
    try:
        with FrameReader(source).opened() as (container, stream):
            if container.metadata.get("comment") != encoding_comment(spec):
                return False
            keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
            codec = stream.codec_context.codec.canonical_name
    except (Unreadable, av.FFmpegError):
        return False
    return codec == spec.codec and keys == [number % spec.gop == 0 for number in range(len(keys))]


def encode_video(
    frames: Iterable[NDArray[np.uint8]], *, fps: float | Fraction, codec: str = "vp9", gop: int = 32
) -> bytes:
    """Encode RGB pictures, each (H, W, 3) uint8, into an mp4 of constant rate; returns its bytes.

    codec: "vp9" or "h264". gop: frames from one key frame to the next. Raises ValueError when there is no
    picture, a side is odd, or the size changes.
    """
    to_yuv = VideoReformatter()
    with tempfile.TemporaryDirectory(prefix="leantad-") as folder:
        path = Path(folder) / "video.mp4"
        with _Encoder(path, fps=exact_rate(fps), codec=codec, gop=gop) as encoder:
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                encoder.write(_to_bt601(to_yuv, frame, frame.width, frame.height))
        return path.read_bytes()


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as the fraction meant: 29.97 becomes 30000/1001, 23.976 becomes 24000/1001."""
    rate = Fraction(fps).limit_denominator(100)
    ntsc = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return ntsc if rate.denominator > 1 and abs(ntsc - Fraction(fps)) < Fraction(1, 500) else rate


def resample(reader: Iterable[tuple[Fraction, av.VideoFrame]], fps: Fraction) -> Iterator[av.VideoFrame]:
    """The frame on screen at k / fps seconds for k = 0 .. round(duration * fps) - 1, at least one.

    reader: (seconds, frame) in order of time, and `metadata.duration` after it (FrameReader).
    """
    due: deque[av.VideoFrame] = deque()  # shown at number / fps and on, unless the video ends before
    number = 0
    for (_, shown), (until, _) in pairwise(_with_end(reader)):
        while (number + len(due)) / fps + STAMP_ROUNDING < until:
            due.append(shown)
        while due and number + Fraction(1, 2) <= until * fps:
            yield due.popleft()
            number += 1
    if number == 0:  # shorter than half a frame
        yield due[0] if due else shown


def _with_end(reader) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    yield from reader
    yield reader.metadata.duration, None


def _target_rate(source: str | Path | bytes, spec: EncodingSpec) -> Fraction:
    if spec.fps and spec.upscale:
        return spec.fps
    own = _packet_rate(source)
    return min(own, spec.fps) if spec.fps else own


def _packet_rate(source: str | Path | bytes) -> Fraction:
    """The source's rate from the stamps of its packets: no decoding."""
    with FrameReader(source).opened() as (container, stream):
        try:
            packets = container.demux(stream)
            stamps = [packet.pts * packet.time_base for packet in packets if packet.pts is not None]
        except av.FFmpegError:
            stamps = []  # the decoding that follows says what is wrong
        stated = rate_of(stream)
    spread = max(stamps) - min(stamps) if stamps else 0
    measured = (len(stamps) - 1) / spread if spread else stated or Fraction(25)
    close = stated is not None and abs(measured / stated - 1) < Fraction(1, 200)
    return stated if close else measured.limit_denominator(1001) or measured


class _Encoder:
    """Write yuv420p frames of one size into an mp4 of constant rate whose index comes first."""

    def __init__(self, path: Path, *, fps: Fraction, codec: str, gop: int, comment: str = ""):
        self.fps, self.gop, self.count = fps, gop, 0
        self.encoder, self.options = ENCODERS[codec]
        self.container = av.open(str(path), "w", format="mp4", options=MP4)
        if comment:
            self.container.metadata["comment"] = comment
        self.stream: av.VideoStream | None = None

    def __enter__(self) -> _Encoder:
        return self

    def write(self, frame: av.VideoFrame) -> None:
        if self.stream is None:
            self.stream = self._start(frame.width, frame.height)
        if (frame.width, frame.height) != (self.stream.width, self.stream.height):
            raise ValueError(
                f"frame {self.count}: got {frame.width}x{frame.height}, want {self.stream.width}x"
                f"{self.stream.height} as the first"
            )
        frame.pts, frame.time_base = self.count, 1 / self.fps
        frame.pict_type = PictureType.NONE  # else a decoder's key frames become the encoder's
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def _start(self, width: int, height: int) -> av.VideoStream:
        if width % 2 or height % 2:
            raise ValueError(f"pictures: got {width}x{height}, want an even width and height (4:2:0 video)")
        options = {**self.options, "keyint_min": str(self.gop)}
        stream = self.container.add_stream(self.encoder, rate=self.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        context.gop_size, context.thread_count = self.gop, 1
        context.colorspace, context.color_range = BT601_TAG, LIMITED_TAG
        return stream

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self.stream is None:
                raise ValueError("no frame to encode, want at least one")
            if kind is None:
                self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class _Upright:
    """Scale frames to the training size, then turn them upright; the size is fixed by the first."""

    def __init__(self, spec: EncodingSpec):
        self.spec, self.scaler = spec, VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.last: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def __call__(self, frame: av.VideoFrame, reader: FrameReader) -> av.VideoFrame:
        if self.last is None or self.last[0] is not frame:  # a frame shown twice is scaled once
            self.size = self.size or training_size(frame.width, frame.height, reader.aspect, self.spec)
            upright = _turned(_to_bt601(self.scaler, frame, *self.size), reader.rotation)
            self.last = frame, upright
        return self.last[1]


def training_size(width: int, height: int, aspect: Fraction, spec: EncodingSpec) -> tuple[int, int]:
    """Width and height to scale to (as stored, before turning): short side as asked, square pixels, even."""
    shown = width * aspect
    short = min(shown, Fraction(height))
    wanted = spec.short_side or short
    target = max(2, 2 * floor((wanted if spec.upscale else min(wanted, short)) / 2))
    other = max(2, 2 * round(max(shown, height) * target / short / 2))
    return (target, other) if shown < height else (other, target)


def _to_bt601(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
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


def _turned(frame: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """A yuv420p frame turned counter-clockwise by 0, 90, 180 or 270 degrees."""
    if not rotation:
        return frame
    planes = [np.rot90(plane, rotation // 90) for plane in planes_of(frame)]
    height, width = planes[0].shape
    # flat: a colour plane need not fill whole rows (42 rows of 24 pixels have two planes of 10.5 such rows)
    stacked = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(stacked.reshape(height * 3 // 2, width), format="yuv420p")


def planes_of(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """The Y (H, W), U and V (H/2, W/2) planes of a yuv420p frame with even sides."""
    height, width = frame.height, frame.width
    flat = frame.to_ndarray().reshape(-1)
    sizes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    starts = np.cumsum([0, *(h * w for h, w in sizes)])
    return [flat[start : start + h * w].reshape(h, w) for start, (h, w) in zip(starts, sizes, strict=False)]
