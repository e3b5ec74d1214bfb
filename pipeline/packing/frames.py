"""Decodes the packets of a video strictly; it depends on where they are what becomes of bad frames.

Before the first good frame (the stream was cut out of another one) they are dropped and counted. After the
last one (a recorder crashed, a download broke off) the video ends before them. Between good frames they are
damage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.frame import PictureType

from ..limits import decoding_reason
from .demux import Damage, Demuxer, VideoPacket

# These decoders wait for a frame that needs no other; the rest show grey with what moves.
WAITING = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video"})
# These raise errors that leave the picture whole (a list of references names a frame that is gone), and mark
# those that are not; what comes out of others after an error is not good.
MARKING = frozenset({"h264", "hevc"})
DELAY = 20  # packets after which a frame that has not come out does not come: H.264 and HEVC reorder 16

Timed = tuple[Fraction, av.VideoFrame]


class DamagedInside(ValueError):
    """Good frames follow frames that cannot be decoded."""


class Unstamped(ValueError):
    """Frames have no time stamps, and nothing says how many there are in a second."""


@dataclass(frozen=True)
class _Packet:
    """Time stamp in seconds (None: unknown), whether the container hides the frame, why it failed, if for
    good.
    """

    stamp: Fraction | None
    is_hidden: bool = False
    failure: str = ""
    is_lost: bool = False


class FrameDecoder:
    """Iterate once over (time stamp in seconds, frame) of the good frames, as the decoder hands them out.

    rate: frames per second where frames have no time stamps; None: unknown. Raises DamagedInside and
    Unstamped. Afterwards `leading` is the number of frames before the first good one that could not be
    decoded, `failure` the first reason for a frame that could not, `ending` why the video ends early (None:
    it does not), and `unstamped` the number of frames without a time stamp.
    """

    def __init__(self, demuxer: Demuxer, rate: Fraction | None):
        self.demuxer, self.rate = demuxer, rate
        self.context, self.clock = demuxer.stream.codec_context, demuxer.stream.time_base
        self.leading = self.unstamped = 0
        self.failure: str | None = None
        self.ending: str | None = None
        self._number = -1  # of the packet that went in last
        self._needs_key = False  # whether what comes out leans on frames that are not there
        self._first: tuple[int, Fraction] | None = None  # packet and time stamp of the first good frame
        self._last: tuple[Fraction, int] | None = None  # time stamp of the last frame, its ticks on screen
        self._origin: Fraction | None = None  # time stamp of the first packet
        self._opening: dict[int, _Packet] | None = {}  # the first packets, until their frames come out
        self._begin: list[Fraction] = []  # `begin`, once the opening is closed
        self._failed: dict[int, _Packet] = {}
        # good frames, while one before them may have failed
        self._held: deque[tuple[int, Fraction, av.VideoFrame]] = deque()

    def __iter__(self) -> Iterator[Timed]:
        self.context.options |= {"err_detect": "explode"}
        self.context.thread_count = 1  # the same frames on every machine; workers are processes
        self.context.copy_opaque = True  # a frame knows the number of its packet
        for item in self.demuxer:
            self._number += 1
            if isinstance(item, Damage):
                self._fail(self._number, None, item.reason)
                if item.inside and self._first is not None:
                    raise DamagedInside(item.reason)
            else:
                self._note(item)
                yield from self._decode(item)
        self._number += 1
        yield from self._decode(None)
        self._close_opening()
        yield from self._settle(at_end=True)

    @property
    def begin(self) -> Fraction:
        """The time stamp of the first frame that is to be shown, whether it can be decoded or not."""
        assert self._first is not None, "there is no good frame yet"
        shown = (packet for packet in (self._opening or {}).values() if not packet.is_hidden)
        return min([self._first[1], *self._begin, *(one.stamp for one in shown if one.stamp is not None)])

    def _note(self, packet: VideoPacket) -> None:
        packet.opaque = self._number
        if self._number == 0:
            self._origin = self._seconds(packet.pts)
            self._needs_key = not packet.is_keyframe and self.context.name not in WAITING
        if self._first is not None and self._number > self._first[0] + DELAY:
            self._close_opening()
        if self._opening is not None:
            self._opening[self._number] = _Packet(self._seconds(packet.pts), packet.is_discard)
        if packet.is_corrupt:  # until its frame comes out
            stamp = self._seconds(packet.pts)
            self._fail(self._number, stamp, "a packet marked as damaged gives no frame", is_lost=False)

    def _close_opening(self) -> None:
        """Count the frames before the first good one. Those that the container hides are not missed, but for
        the ones shown before the very first packet: they are hidden because they lean on frames that are
        gone.
        """
        if self._opening is None:
            return
        origin = self._origin or Fraction(0)
        unseen = {
            number
            for number, packet in self._opening.items()
            if packet.stamp is not None
            and self._is_before(packet.stamp)
            and (not packet.is_hidden or packet.stamp < origin)
        }
        failed = {number for number in self._failed if self._is_leading(number)}
        self.leading = len(unseen | failed)
        self._begin = [self.begin] if self._first is not None else []
        self._failed = {number: packet for number, packet in self._failed.items() if number not in failed}
        self._opening = None

    def _fail(self, number: int, stamp: Fraction | None, reason: str, *, is_lost: bool = True) -> None:
        """Note a packet without a good frame; is_lost False: unless one comes out."""
        self.failure = self.failure or reason
        self._failed[number] = _Packet(stamp, failure=reason, is_lost=is_lost)

    def _decode(self, packet: VideoPacket | None) -> Iterator[Timed]:
        try:
            frames = self.demuxer.stream.decode(packet)
        except av.FFmpegError as error:
            stamp = None if packet is None else self._seconds(packet.pts)
            reason = f"{decoding_reason(error)} ({self.context.name})"
            self._fail(self._number, stamp, reason, is_lost=self.context.name not in MARKING)
            self._needs_key |= self._first is None and packet is not None and packet.is_keyframe
            return
        for frame in frames:
            number = frame.opaque if isinstance(frame.opaque, int) else self._number
            stamp = self._stamp(frame)
            if self._is_good(number, stamp, frame):
                if self._failed or self._held:
                    self._held.append((number, stamp, frame))
                    yield from self._settle()
                else:
                    yield stamp, frame

    def _stamp(self, frame: av.VideoFrame) -> Fraction:
        stamp = self._seconds(frame.pts) if self.demuxer.is_timed else None
        if stamp is None:
            if self.rate is None:
                raise Unstamped
            self.unstamped += 1
            stamp = self._next()
        self._last = stamp, frame.duration if self.demuxer.is_timed else 0
        return stamp

    def _next(self) -> Fraction:
        """The time stamp of a frame that has none."""
        if self._last is None:
            return Fraction(0)
        stamp, ticks = self._last
        return stamp + (self._seconds(ticks or None) or (1 / self.rate if self.rate else 0))

    def _seconds(self, ticks: int | None) -> Fraction | None:
        return None if ticks is None or self.clock is None else ticks * self.clock

    def _is_good(self, number: int, stamp: Fraction, frame: av.VideoFrame) -> bool:
        """Note a frame that came out; not good is one marked as damaged, or that leans on what is missing."""
        if frame.is_corrupt or (self._needs_key and not _is_whole(frame)):
            self._fail(number, stamp, "a frame is marked as damaged")
            return False
        if number in self._failed and self._failed[number].is_lost:
            return False
        self._needs_key = False
        self._failed.pop(number, None)
        if self._opening is not None:
            self._opening.pop(number, None)
        if self._is_before(stamp):
            self._first = (number, stamp)
        return True

    def _is_before(self, stamp: Fraction | None) -> bool:
        """Whether no good frame is as early as this."""
        return self._first is None or (stamp is not None and stamp < self._first[1])

    def _is_leading(self, number: int) -> bool:
        return self._first is None or number < self._first[0] or self._is_before(self._failed[number].stamp)

    def _settle(self, *, at_end: bool = False) -> Iterator[Timed]:
        """Hand out what is held. What came after a frame that may have failed waits until that is clear.

        Raises DamagedInside once one has failed and good frames follow it.
        """
        failed = min((number for number in self._failed if not self._is_leading(number)), default=None)
        while self._held and (failed is None or self._held[0][0] < failed):
            _, stamp, frame = self._held.popleft()
            yield stamp, frame
        if failed is None or (not at_end and self._number <= failed + DELAY):
            return
        self.ending = self._failed[failed].failure
        lost = self._failed[failed].stamp
        for number, stamp, frame in self._held:
            if number < failed:
                yield stamp, frame
            elif lost is None or stamp > lost:
                raise DamagedInside(self.ending)
        self._held.clear()


def _is_whole(frame: av.VideoFrame) -> bool:
    """Whether a frame leans on no other."""
    return bool(frame.key_frame or frame.pict_type == PictureType.I)
