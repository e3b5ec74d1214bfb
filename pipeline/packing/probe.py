"""Find what a video file holds by decoding all of it, and refuse a damaged one with the reason.

0 s is where a player starts: at the track that begins first. A picture that begins after the sound has its
first frame later than 0 s. Frame count, rate and duration come from the time stamps of decoded frames, never
from the header. Remarks state what is kept of an imperfect file, and how.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData, Type
from av.stream import Stream

from ..container import open_video
from .clock import Clock, in_order, is_steady
from .demux import Demuxer, reader_logs
from .frames import DamagedInside, FrameDecoder, Unstamped
from .rates import coded_rate, stated_rate
from .remarks import leading_text, remarks_of

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# Pictures and sound of one recording begin up to this apart (seconds): the delay of B-frames, the sound's
# run-up. Nobody sees it, and annotation tools do not agree on it.
SAME_BEGIN = Fraction(1, 10)
RE_ENCODE = "ffmpeg -i IN -c:v libx264 OUT.mp4"
GIVE_RATE = "ffmpeg -r RATE -i IN -c:v libx264 OUT.mp4"


class Unreadable(ValueError):
    """A video that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class VideoMetadata:
    """What a decoded video holds.

    duration: exact seconds from 0 s to the end of the last frame's time on screen. begin: when the first
    frame is shown. fps: frames per second of the time stamps. width, height: pixels as stored, of the first
    frame. rotation: degrees counter-clockwise that turn the stored picture upright. aspect: width of a pixel
    over its height. steady: every frame lies within half a frame, and half a second, of begin + k / fps.
    transfer: "PQ" or "HLG" for high dynamic range, else None. formats: size and pixel format of all frames,
    as "64x48 yuv420p", in the order of their first frames. remarks: (kind, text) of what is out of the
    ordinary.
    """

    duration: Fraction
    fps: Fraction
    num_frames: int
    width: int
    height: int
    rotation: int
    aspect: Fraction
    codec: str
    pix_fmt: str
    steady: bool
    transfer: str | None
    begin: Fraction = Fraction(0)
    formats: tuple[str, ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()


def probe(source: str | Path | bytes, *, strict: bool = False) -> VideoMetadata:
    """The metadata of a file (or its bytes), decoded whole. Raises Unreadable as FrameReader does."""
    reader = FrameReader(source, strict=strict)
    for _ in reader:
        pass
    return reader.metadata


class FrameReader:
    """Iterate once over (seconds, frame); after that `metadata` is set.

    Frames that cannot be decoded are left out where they stand before the first good one or after the last.
    Memory is constant: 16 decoded frames. Raises Unreadable, with what was decoded before, when the file
    cannot be opened, holds no video, or is damaged between good frames. strict: when any frame is missing.
    """

    def __init__(self, source: str | Path | bytes, *, strict: bool = False):
        self.source, self.strict = source, strict
        self.name = "video" if isinstance(source, bytes) else str(source)
        self.rotation, self.aspect = 0, Fraction(1)  # as in VideoMetadata; known from the first frame on
        self._count, self._begun, self._ended = 0, Fraction(0), Fraction(0)  # of what is decoded so far
        self._formats: dict[str, None] = {}
        self._metadata: VideoMetadata | None = None

    @property
    def metadata(self) -> VideoMetadata:
        assert self._metadata is not None, "read the video to its end first"
        return self._metadata

    def __iter__(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        with reader_logs() as logs, self.opened() as (container, stream):
            demuxer = Demuxer(self.source, container, stream, logs)
            decoder = FrameDecoder(demuxer, coded_rate(stream))
            clock, tick = Clock(stated_rate(stream)), stream.time_base or Fraction(0)
            for stamp, frame in in_order(self._counted(decoder)):
                if not clock.count:
                    first, first_frame = stamp, frame
                    begin = _begin_of(container, decoder, stamp)
                    self._check_orientation(frame)
                    self.rotation = frame.rotation % 360
                    self.aspect = Fraction(stream.sample_aspect_ratio or 1)
                time = stamp - first
                if time < clock.last:
                    raise self._refuse(f"time stamps are in disorder; give it its rate: {GIVE_RATE}")
                clock.add(time, frame.duration * tick)
                yield begin + time, frame
            if not clock.count:
                raise self._refuse(decoder.failure or "no frame in it")
            formats, rate = tuple(self._formats), clock.rate()
            self._metadata = VideoMetadata(
                duration=begin + clock.end,
                fps=rate,
                num_frames=clock.count,
                width=first_frame.width,
                height=first_frame.height,
                rotation=self.rotation,
                aspect=self.aspect,
                codec=stream.codec_context.codec.canonical_name,
                pix_fmt=first_frame.format.name,
                steady=is_steady(clock.times, rate),
                transfer=HDR_TRANSFERS.get(int(first_frame.color_trc)),
                begin=begin,
                formats=formats,
                remarks=remarks_of(container, decoder, clock, begin, formats),
            )

    def _counted(self, decoder: FrameDecoder) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """The decoder's frames, counted; what stops it is an Unreadable."""
        tick, layout = decoder.clock or Fraction(0), (0, 0, "")
        try:
            for stamp, frame in decoder:
                if not self._count:
                    self._begun = self._ended = stamp
                self._count += 1
                self._ended = max(self._ended, stamp + frame.duration * tick)
                if layout != (layout := (frame.width, frame.height, frame.format.name)):
                    self._formats.setdefault("{}x{} {}".format(*layout))
                yield stamp, frame
        except DamagedInside as error:
            raise self._refuse(f"{error}; more follows, so re-encode it to mend it: {RE_ENCODE}") from None
        except Unstamped:
            raise self._refuse(f"its frames have no time stamps; give it its rate: {GIVE_RATE}") from None
        missing = decoder.ending or leading_text(decoder)
        if self.strict and self._count and missing:
            raise self._refuse(missing)

    def _refuse(self, reason: str) -> Unreadable:
        seconds = float(self._ended - self._begun)
        done = f"decoded {self._count} frames ({seconds:.2f} s), then: " if self._count else ""
        return Unreadable(self.name, done + reason)

    def _check_orientation(self, frame: av.VideoFrame) -> None:
        side_data = cast(Mapping[Type, SideData], frame.side_data)  # PyAV's stub names motion vectors only
        matrix = side_data.get(Type.DISPLAYMATRIX)
        if matrix is not None:
            a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
            if a * d - b * c < 0:
                raise self._refuse("its picture is to be shown mirrored, which is not supported")
        if frame.rotation % 90:
            raise self._refuse(f"its picture is turned by {frame.rotation} degrees, want a right angle")

    @contextmanager
    def opened(self) -> Iterator[tuple[InputContainer, av.VideoStream]]:
        """The open container and its video stream; nothing is decoded."""
        size = len(self.source) if isinstance(self.source, bytes) else os.stat(self.source).st_size
        if not size:
            raise self._refuse("the file is empty (0 bytes)")
        with ExitStack() as stack:
            try:
                video = stack.enter_context(open_video(self.source, options={"err_detect": "explode"}))
            except ValueError as error:
                raise self._refuse(str(error)) from None
            yield video


def track_begins(tracks: Iterable[Stream]) -> list[Fraction]:
    """When tracks begin by the file's own clock, in seconds, of those that say so."""
    starts = ((track.start_time, track.time_base) for track in tracks)
    return [start * base for start, base in starts if start is not None and base is not None]


def _begin_of(container: InputContainer, decoder: FrameDecoder, first: Fraction) -> Fraction:
    """When the first frame is shown, in seconds from where a player starts."""
    begin = first - min([decoder.begin, *track_begins(container.streams.audio)])
    return begin if begin >= SAME_BEGIN else Fraction(0)
