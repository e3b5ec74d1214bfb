"""Re-encode a video for training: constant rate, small, upright, BT.601, closed groups of pictures.

Frame k of the result is what a player shows of the source k / fps seconds after its start; before the
source's first frame, that one. Memory is a few frames whatever the length; the source is decoded once, the
result not again (describe.py says what is checked of it). Equal input gives equal bytes. Colours become
BT.601 limited range, which both training decoders assume; HDR is not tone-mapped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ..packets import rows_of
from ..temporary_folder import temporary_folder
from .clock import is_steady
from .demux import Damage, Demuxer, reader_logs
from .describe import describe
from .encoder import VideoEncoder, to_bt601
from .probe import FrameReader, Unreadable, VideoMetadata
from .rates import closest_rate, coded_rate, moving_rate, stated_rate

Size = tuple[int, int]
# Containers round stamps to ticks of their clock (1 ms in Matroska): a stamp may be that much too late.
STAMP_ROUNDING = Fraction(1, 1000)


@dataclass(frozen=True)
class EncodingSpec:
    """How a video is encoded.

    codec: "vp9" or "h264". fps: frames per second, short_side: pixels (even); 0 keeps the source's. gop:
    frames from one key frame to the next; each group decodes on its own. upscale: let fps and short_side
    exceed the source's. side_multiple: both sides are multiples of it; 2 is what 4:2:0 needs and stretches by
    less than that, any other crops up to half of it off a side instead.
    """

    codec: str = "vp9"
    fps: Fraction = Fraction(15)
    short_side: int = 128
    gop: int = 32
    upscale: bool = False
    side_multiple: int = 2


def transcode(
    source: str | Path | bytes, spec: EncodingSpec, *, strict: bool = False
) -> tuple[bytes, VideoMetadata, VideoMetadata]:
    """Re-encode a video; returns mp4 bytes, metadata of the source, metadata of those bytes.

    The result lasts as long as the source to half a frame; its picture is upright, pixels square, sides even.
    Raises Unreadable when the source is damaged; strict: when any frame of it is missing.
    """
    fps = _target_rate(source, spec)
    reader = FrameReader(source, strict=strict)
    with temporary_folder() as folder:
        path = folder / "video.mp4"
        comment = encoding_comment(spec)
        with VideoEncoder(path, fps=fps, codec=spec.codec, gop=spec.gop, comment=comment) as encoder:
            scale = _UprightScaler(spec)
            for frame in resample(reader, fps):
                encoder.write(scale(frame, reader))
        data = path.read_bytes()
    try:
        result = describe(
            data, fps=fps, num_frames=encoder.count, size=encoder.size, codec=spec.codec, gop=spec.gop
        )
    except (ValueError, av.FFmpegError) as error:
        raise Unreadable(reader.name, str(error)) from None
    return data, reader.metadata, result


def encoding_comment(spec: EncodingSpec) -> str:
    """The comment that `transcode` writes into its files."""
    upscale = " upscale" if spec.upscale else ""
    multiple = f" sides of {spec.side_multiple}" if spec.side_multiple != 2 else ""
    return (
        f"leantad {spec.codec} fps {spec.fps} short side {spec.short_side} gop {spec.gop}{upscale}{multiple}"
    )


def has_encoding(source: str | Path | bytes, spec: EncodingSpec) -> bool:
    """Whether `transcode` made this file by this very spec: encoding it again would only blur it.

    Nothing is decoded. The comment may have survived an editor; codec and key frames hardly do.
    """
    try:
        with FrameReader(source).opened() as (container, stream):
            if container.metadata.get("comment") != encoding_comment(spec):
                return False
            keyframes = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
            codec = stream.codec_context.codec.canonical_name
    except (Unreadable, av.FFmpegError):
        return False
    return codec == spec.codec and keyframes == [number % spec.gop == 0 for number in range(len(keyframes))]


def resample(reader: FrameReader, fps: Fraction) -> Iterator[av.VideoFrame]:
    """The frame on screen at k / fps seconds for k = 0 .. round(duration * fps) - 1, at least one."""
    due: deque[av.VideoFrame] = deque()  # shown at number / fps and on, unless the video ends before
    number = 0
    rounding, half = STAMP_ROUNDING * fps, Fraction(1, 2)
    for shown, until in _shown_until(reader):
        ended = until * fps  # in frames of the result
        first_late, last_shown = ceil(ended - rounding), floor(ended - half)
        while number + len(due) < first_late:
            due.append(shown)
        while due and number <= last_shown:
            yield due.popleft()
            number += 1
    if number == 0:  # shorter than half a frame
        yield due[0] if due else shown


def _shown_until(reader: FrameReader) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Each frame, and the seconds at which the next one replaces it or the video ends."""
    shown: av.VideoFrame | None = None
    for time, frame in reader:
        if shown is not None:
            yield shown, time
        shown = frame
    if shown is not None:
        yield shown, reader.metadata.duration


def _target_rate(source: str | Path | bytes, spec: EncodingSpec) -> Fraction:
    if spec.fps and spec.upscale:
        return spec.fps
    own = _packet_rate(source)
    return min(own, spec.fps) if spec.fps else own


def _packet_rate(source: str | Path | bytes) -> Fraction:
    """The source's rate from the stamps of its packets: no decoding. Where they come unevenly, as in
    recordings with pauses, it is the rate at which they come when something moves.
    """
    stamps = []
    with reader_logs() as logs, FrameReader(source).opened() as (container, stream):
        demuxer = Demuxer(source, container, stream, logs)
        for packet in demuxer if demuxer.is_timed else ():
            if not isinstance(packet, Damage) and packet.pts is not None and packet.time_base is not None:
                stamps.append(packet.pts * packet.time_base)
        stated, coded = stated_rate(stream), coded_rate(stream)
    stamps.sort()
    spread = stamps[-1] - stamps[0] if stamps else Fraction(0)
    if not spread:
        return (coded if not stamps else None) or stated or Fraction(25)
    rate = closest_rate((len(stamps) - 1) / spread, stated)
    times = [float(stamp - stamps[0]) for stamp in stamps]
    return rate if is_steady(times, rate) else max(rate, moving_rate(times, coded))


class _UprightScaler:
    """Scales frames to the training size, crops and turns them upright; the size is fixed by the first."""

    def __init__(self, spec: EncodingSpec):
        self.spec, self.scaler = spec, VideoReformatter()
        self.sizes: tuple[Size, Size] | None = None
        self.last: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def __call__(self, frame: av.VideoFrame, reader: FrameReader) -> av.VideoFrame:
        if self.last is None or self.last[0] is not frame:  # a frame shown twice is scaled once
            self.sizes = self.sizes or scaled_and_cropped(frame.width, frame.height, reader.aspect, self.spec)
            scaled, cropped = self.sizes
            picture = _cropped(to_bt601(self.scaler, frame, *scaled), cropped)
            self.last = frame, _turned(picture, reader.rotation)
        return self.last[1]


def scaled_and_cropped(width: int, height: int, aspect: Fraction, spec: EncodingSpec) -> tuple[Size, Size]:
    """The sizes to scale to and then to crop to, as stored, before turning. aspect: of a stored pixel."""
    shown, stored = width * aspect, Fraction(height)
    short, long = sorted((shown, stored))
    wanted = Fraction(spec.short_side) or short
    target = wanted if spec.upscale else min(wanted, short)
    fit = _stretched if spec.side_multiple == 2 else _covering
    (short_scaled, short_cropped), (long_scaled, long_cropped) = fit(short, long, target, spec.side_multiple)
    if shown < height:
        return (short_scaled, long_scaled), (short_cropped, long_cropped)
    return (long_scaled, short_scaled), (long_cropped, short_cropped)


def _stretched(short: Fraction, long: Fraction, target: Fraction, multiple: int) -> tuple[Size, Size]:
    """For each side (scaled, cropped): both as near to the scale as even numbers are; nothing is cut."""
    near = max(2, 2 * floor(target / 2))
    far = max(2, 2 * round(long * near / short / 2))
    return (near, near), (far, far)


def _covering(short: Fraction, long: Fraction, target: Fraction, multiple: int) -> tuple[Size, Size]:
    """For each side (scaled, cropped): scaled by one factor to cover the nearest multiples, then cropped.

    At most half a multiple is cut off one side, or off both where the source need not be scaled.
    """
    if target == short == floor(short) and max(short % multiple, long % multiple) <= multiple / 2:
        near, far = floor(short) // multiple * multiple, floor(long) // multiple * multiple
        if near:
            return (floor(short) // 2 * 2, near), (floor(long) // 2 * 2, far)
    near = _nearest(target, multiple)
    far = _nearest(long * near / short, multiple)
    scale = max(near / short, far / long)
    return (_even_at_least(short * scale, near), near), (_even_at_least(long * scale, far), far)


def _nearest(side: Fraction, multiple: int) -> int:
    """The multiple next to a side, of two equally near ones the smaller; at least one."""
    return max(1, ceil(side / multiple - Fraction(1, 2))) * multiple


def _even_at_least(side: Fraction, least: int) -> int:
    return max(least, 2 * round(side / 2))


def _cropped(frame: av.VideoFrame, size: Size) -> av.VideoFrame:
    """The middle of a yuv420p frame."""
    width, height = size
    if (frame.width, frame.height) == size:
        return frame
    left, top = (frame.width - width) // 4 * 2, (frame.height - height) // 4 * 2  # even: whole chroma samples
    cropped = av.VideoFrame(width, height, "yuv420p")
    for plane, into, scale in zip(frame.planes, cropped.planes, (1, 2, 2), strict=True):
        rows = slice(top // scale, (top + height) // scale)
        rows_of(into)[: height // scale, : width // scale] = rows_of(plane)[
            rows, left // scale : (left + width) // scale
        ]
    return cropped


def _turned(frame: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """A yuv420p frame turned counter-clockwise by 0, 90, 180 or 270 degrees."""
    if not rotation:
        return frame
    return _frame_of([np.rot90(plane, rotation // 90) for plane in planes_of(frame)])


def _frame_of(planes: list[NDArray[np.uint8]]) -> av.VideoFrame:
    """A yuv420p frame of its planes Y (H, W), U and V (H/2, W/2)."""
    height, width = planes[0].shape
    # flat: a colour plane need not fill whole rows (42 rows of 24 pixels have two planes of 10.5 such rows)
    stacked = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(stacked.reshape(height * 3 // 2, width), format="yuv420p")


def planes_of(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """The Y (H, W), U and V (H/2, W/2) planes of a yuv420p frame with even sides."""
    height, width = frame.height, frame.width
    flat = np.asarray(frame.to_ndarray(), dtype=np.uint8).reshape(-1)
    sizes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    starts = np.cumsum([0, *(h * w for h, w in sizes)])
    return [flat[start : start + h * w].reshape(h, w) for start, (h, w) in zip(starts, sizes, strict=False)]
