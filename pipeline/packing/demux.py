"""Reads a video's packets in the file's order, makes their time stamps rise, and says where the file is
damaged.

A time stamp that jumps back (recordings joined end to end) is taken for a new beginning: what follows is
shown right after what came before, as players do.
"""

from __future__ import annotations

import io
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from .clock import REORDERED_FRAMES

VideoPacket: TypeAlias = "Packet[Stream]"
Logs: TypeAlias = Sequence[tuple[int, str, str]]  # level, reader or decoder, text
BYTE = re.compile(r"\bat (?:pos\.? )?(0x[0-9a-f]+|\d+)", re.IGNORECASE)  # in messages of the Matroska reader
TS_DISCONT = 512  # FFmpeg's AVFMT_TS_DISCONT: formats whose clock may start anew
NO_TIMESTAMPS = 128  # AVFMT_NOTIMESTAMPS: elementary streams; FFmpeg makes times up
STATING = ("matroska,webm", "flv", "asf", "mxf")  # formats whose head states a length, in FFmpeg's names


@dataclass(frozen=True)
class Damage:
    """A sign of damage. inside: parts of the video surely lie behind it; else what comes next decides."""

    reason: str
    inside: bool = False


class Demuxer:
    """Iterate once over the packets of `stream`, with the signs of damage where they lie.

    logs: what FFmpeg says while it reads, of reader_logs. is_timed: whether time stamps come from the file.
    After the iteration `flagged` is the number of packets marked as damaged, `joins` how often time stamps
    jumped back.
    """

    def __init__(
        self, source: str | Path | bytes, container: InputContainer, stream: av.VideoStream, logs: Logs
    ):
        self.source, self.container, self.stream, self.logs = source, container, stream, logs
        self.is_timed = not container.format.flags & NO_TIMESTAMPS
        self.flagged = self.joins = self._count = 0
        self._ends: dict[int, int] = {}  # the latest end of a packet of each stream, in ticks of its clock
        self._shift = self._latest = 0  # in ticks of the stream
        in_order = container.format.flags & TS_DISCONT
        self._recent: deque[int] = deque(maxlen=1 if in_order else REORDERED_FRAMES + 1)  # last times

    def __iter__(self) -> Iterator[VideoPacket | Damage]:
        # Parts of transport streams are numbered; where files were joined the numbers jump, which is no
        # damage. Parts of program streams hold several frames: one that is cut off may hold whole ones.
        in_parts, wanted = bool(self.container.format.flags & TS_DISCONT), self.stream.index
        try:
            for packet in self.container.demux():
                index = packet.stream_index
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0)
                    self._ends[index] = max(self._ends.get(index, 0), end)
                if index != wanted or not packet.size:
                    continue
                self._count += 1
                if packet.is_corrupt and not in_parts:
                    yield Damage("the file breaks off inside a frame")
                    continue
                self.flagged += packet.is_corrupt
                yield self._continued(packet)
        except av.FFmpegError as error:
            yield Damage(f"the {self.container.format.name} reader stops: {error.strerror}")
        yield from self._missing()

    def _continued(self, packet: VideoPacket) -> VideoPacket:
        """The packet, its time stamps moved behind all before it if they jump back.

        The decoding times tell in transport and program streams. For other formats FFmpeg makes them up;
        there a frame is never shown before all of the last 16 that came before it.
        """
        time = packet.dts if self._recent.maxlen == 1 else packet.pts
        if time is not None:
            if len(self._recent) == self._recent.maxlen and time + self._shift < min(self._recent):
                self._shift = self._latest + (packet.duration or 1) - time
                self.joins += 1
            self._latest = max(self._latest, time + self._shift) if self._recent else time
            self._recent.append(time + self._shift)
        if self._shift:
            packet.pts = None if packet.pts is None else packet.pts + self._shift
            packet.dts = None if packet.dts is None else packet.dts + self._shift
        return packet

    def _missing(self) -> Iterator[Damage]:
        """What shows at the end: fewer packets than the index lists, an end before the stated length."""
        promised, name = len(self.stream.index_entries), self.container.format.name
        if self._count < promised:
            yield Damage(f"the file holds {self._count} of the {promised} frames its index lists")
        for message in [text.strip() for _, reader, text in self.logs if "matroska" in reader][:1]:
            byte = BYTE.search(message)  # where the reader stumbled, unless it came to the end
            blank = byte is not None and _is_blank(self.source, int(byte[1], 0))
            yield Damage(f"the container is damaged: {message}", not blank and "prematurely" not in message)
        # These have no list of frames, AVI has its at the end: compare with the length stated first.
        stated = Fraction(0)
        if name in STATING:
            stated = Fraction(self.container.duration or 0, av.time_base)
        elif name == "avi":
            stated = self.stream.frames * (self.stream.time_base or Fraction(0))
        end = self._end()
        if stated - end > max(Fraction(1), stated / 50):
            text = f"the file ends at {float(end):.2f} s, its header says {float(stated):.2f} s"
            # AVI has no time stamps: a part that is gone from a whole file would move all that follows.
            yield Damage(text, inside=name == "avi" and not _is_cut_avi(self.source))

    def _end(self) -> Fraction:
        """The latest time stamp of any stream, in seconds."""
        streams = self.container.streams
        clocks = {index: streams[index].time_base or Fraction(0) for index in self._ends}
        return max([Fraction(0), *(end * clocks[index] for index, end in self._ends.items())])


def _is_cut_avi(source: str | Path | bytes) -> bool:
    """Whether an AVI file is shorter than its head says."""
    with _binary(source) as file:
        stated = int.from_bytes(file.read(8)[4:], "little")
        return file.seek(0, os.SEEK_END) < stated + 8


def _is_blank(source: str | Path | bytes, start: int) -> bool:
    """Whether nothing but zeros stands from this byte on, as where a disk was full or the power went."""
    with _binary(source) as file:
        file.seek(start)
        return not any(part.strip(b"\0") for part in iter(partial(file.read, 1 << 20), b""))


def _binary(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


@contextmanager
def reader_logs() -> Iterator[Logs]:
    """Collect what FFmpeg says: its Matroska reader ends quietly where a file is cut or damaged."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(True) as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)
