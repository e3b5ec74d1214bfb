"""Find what a video file holds by decoding all of it, and refuse a damaged one with the reason.

Times count from the first displayed frame, whatever time stamp the file gives it (annotation tools show
that one as 0 s). Frame count, rate and duration come from the time stamps of decoded frames, never from the
header.
"""

from __future__ import annotations

import heapq
import os
import struct
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData, Type
from av.stream import Stream

from ..container import open_video
from ..limits import decoding_reason
from .rates import closest_rate, stated_rate

# Decoders hand out frames in the order of display, but some AVI files swap the stamps of B-frames: the n-th
# frame shown takes the n-th smallest stamp. H.264 and HEVC reorder 16 frames at most.
REORDERED_FRAMES = 16
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


class Unreadable(ValueError):
    """A video that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class VideoMetadata:
    """What a decoded video holds.

    duration: exact seconds, the last frame's time on screen included. fps: frames per second of the time
    stamps. width, height: pixels as stored. rotation: degrees counter-clockwise that turn the stored
    picture upright.
    aspect: width of a pixel over its height. steady: every frame lies within half a frame of k / fps.
    transfer: "PQ" or "HLG" for high dynamic range, else None.
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


def probe(source: str | Path | bytes) -> VideoMetadata:
    """The metadata of a file (or its bytes), decoded whole. Raises Unreadable when it is damaged."""
    reader = FrameReader(source)
    for _ in reader:
        pass
    return reader.metadata


class FrameReader:
    """Iterate once over (seconds from the first displayed frame, frame); after that `metadata` is set.

    Memory is constant: 16 decoded frames. Raises Unreadable, with what was decoded before, when the file
    cannot be opened, holds no video, breaks off, or fails to decode.
    """

    def __init__(self, source: str | Path | bytes):
        self.source = source
        self.name = "video" if isinstance(source, bytes) else str(source)
        self.rotation, self.aspect = 0, Fraction(1)  # as in VideoMetadata; known from the first frame on
        self._count, self._seconds = 0, 0.0  # decoded so far
        self._metadata: VideoMetadata | None = None

    @property
    def metadata(self) -> VideoMetadata:
        assert self._metadata is not None, "read the video to its end first"
        return self._metadata

    def __iter__(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        with self.opened() as (container, stream):
            clock = _Clock(stated_rate(stream))
            for stamp, frame in _in_order(self._decoded(container, stream)):
                if not clock.count:
                    first, first_frame = stamp, frame
                    self._check_orientation(frame)
                    self.rotation = frame.rotation % 360
                    self.aspect = Fraction(stream.sample_aspect_ratio or 1)
                time = stamp - first
                if time < clock.last:
                    raise self._refuse("time stamps jump back; remux the file, for example to mkv")
                clock.add(time, Fraction(frame.duration or 0) * (frame.time_base or 0))
                yield time, frame
            if not clock.count:
                raise self._refuse("no frame in it")
            self._metadata = _metadata_of(clock, stream, first_frame, self)

    def _refuse(self, reason: str) -> Unreadable:
        done = f"decoded {self._count} frames ({self._seconds:.2f} s), then: " if self._count else ""
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

    def _decoded(
        self, container: InputContainer, stream: av.VideoStream
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """(time stamp in seconds, frame) in the order of display, with every check that the file is whole."""
        stream.codec_context.options |= {"err_detect": "explode"}
        stream.codec_context.thread_count = 1  # the same frames on every machine; workers are processes
        packets, reached = 0, Fraction(0)
        try:
            with _matroska_errors() as messages:
                for packet in container.demux():
                    if packet.pts is not None and packet.time_base is not None:
                        reached = max(reached, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream.index != stream.index:
                        continue
                    packets += packet.dts is not None or packet.size > 0
                    if packet.is_corrupt:
                        raise self._refuse("the file breaks off inside a frame")
                    yield from self._frames_of(stream, packet)
        except av.FFmpegError as error:
            raise self._refuse(f"{decoding_reason(error)} ({stream.codec_context.name})") from None
        promised = len(stream.index_entries)
        if packets < promised:
            raise self._refuse(f"the file holds {packets} of the {promised} frames its index lists")
        if messages:
            raise self._refuse(f"the container is damaged: {messages[0]}")
        self._check_length(container, stream, reached)

    def _frames_of(
        self, stream: av.VideoStream, packet: Packet[Stream]
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        for frame in stream.decode(packet):
            if frame.pts is None or frame.time_base is None:
                raise self._refuse("a frame has no time stamp; remux the file, for example to mkv")
            if frame.is_corrupt:
                raise self._refuse("a frame is marked as damaged")
            self._count += 1
            self._seconds = max(self._seconds, float((frame.pts + (frame.duration or 0)) * frame.time_base))
            yield frame.pts * frame.time_base, frame

    def _check_length(self, container: InputContainer, stream: av.VideoStream, reached: Fraction) -> None:
        """Matroska has no list of frames, AVI has its at the end: compare with the length stated first."""
        stated = Fraction(0)
        if "matroska" in container.format.name:
            stated = Fraction(container.duration or 0, av.time_base)
        elif container.format.name == "avi":
            stated = stream.frames * (stream.time_base or Fraction(0))
        if stated - reached > max(Fraction(1), stated / 50):
            found, want = float(reached), float(stated)
            raise self._refuse(f"the file ends at {found:.2f} s, its header says {want:.2f} s")


@contextmanager
def _matroska_errors() -> Iterator[list[str]]:
    """Collect the messages of the Matroska reader, which ends quietly where a file is cut or damaged."""
    messages: list[str] = []
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(True) as logs:
            yield messages
        messages += [text.strip() for _, name, text in logs if "matroska" in name]
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def _in_order(frames: Iterator[tuple[Fraction, av.VideoFrame]]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The same frames and time stamps, stamps rising."""
    stamps: list[Fraction] = []
    waiting: deque[av.VideoFrame] = deque()
    for stamp, frame in frames:
        heapq.heappush(stamps, stamp)
        waiting.append(frame)
        if len(waiting) > REORDERED_FRAMES:
            yield heapq.heappop(stamps), waiting.popleft()
    while waiting:
        yield heapq.heappop(stamps), waiting.popleft()


class _Clock:
    """The times at which frames are shown: their end, rate, and whether they are evenly spaced."""

    def __init__(self, stated: Fraction | None):
        self.stated, self.count = stated, 0
        self.last = self.end = Fraction(0)
        self.times = array("d")

    def add(self, time: Fraction, shown: Fraction) -> None:
        step = shown or (time - self.last) or (1 / self.stated if self.stated else Fraction(1, 25))
        self.last, self.end = time, time + step
        self.times.append(float(time))
        self.count += 1

    def rate(self) -> Fraction:
        """Frames per second; the stated rate where it is near and the frames are evenly spaced by it."""
        measured = (self.count - 1) / self.last if self.last else 1 / self.end
        return closest_rate(measured, self.stated if self.stated and self.steady(self.stated) else None)

    def steady(self, fps: Fraction) -> bool:
        """Whether every frame k lies within half a frame of k / fps."""
        rate = float(fps)
        return all(abs(time * rate - number) <= 0.5 for number, time in enumerate(self.times))


def _metadata_of(
    clock: _Clock, stream: av.VideoStream, first_frame: av.VideoFrame, reader: FrameReader
) -> VideoMetadata:
    return VideoMetadata(
        duration=clock.end,
        fps=clock.rate(),
        num_frames=clock.count,
        width=first_frame.width,
        height=first_frame.height,
        rotation=reader.rotation,
        aspect=reader.aspect,
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=first_frame.format.name,
        steady=clock.steady(clock.rate()),
        transfer=HDR_TRANSFERS.get(int(first_frame.color_trc)),
    )
