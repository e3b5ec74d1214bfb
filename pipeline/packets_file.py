"""Takes out of a packed video on disk only the packets that some frames need: hours of video stay there."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from .records import EncodedFrames


class PackedFile:
    """The packets of a video file, by number; only where they lie is kept in memory.

    In files of `transcode` (mp4, a packet per frame, in the order shown, key frames on which nothing before
    leans) any frame is reached from the key frame before it. Of other files (B-frames,
    packets that are not to be shown) `encoded_frames` gives the whole.
    """

    def __init__(self, path: Path, num_frames: int):
        self.path, self.num_frames = path, num_frames
        with av.open(str(path)) as container:
            packets = [
                (packet.pos, packet.size, None if packet.is_discard else packet.pts, packet.is_keyframe)
                for packet in container.demux(container.streams.video[0])
                if packet.size
            ]
            is_mp4 = "mp4" in container.format.name
        whole = all(None not in packet for packet in packets) and len(packets) == num_frames
        self.table = np.array(packets if whole else [], dtype=np.int64).reshape(-1, 4)
        rising = bool((np.diff(self.table[:, 2]) > 0).all())
        self.keys = np.flatnonzero(self.table[:, 3])
        self.in_order = is_mp4 and whole and rising and len(self.keys) > 0 and self.keys[0] == 0

    def encoded_frames(self, frames: NDArray[np.int64]) -> EncodedFrames:
        """A video of the packets that `frames` need."""
        if not self.in_order:
            return EncodedFrames(self.path.read_bytes(), frames, self.num_frames)
        wanted = np.unique(frames)
        needed = np.zeros(self.num_frames, dtype=bool)
        for key, frame in zip(
            self.keys[np.searchsorted(self.keys, wanted, "right") - 1], wanted, strict=True
        ):
            needed[key : frame + 1] = True
        places = np.flatnonzero(needed)
        numbers = np.searchsorted(places, frames).astype(np.int64)
        return EncodedFrames(self._muxed(places), numbers, len(places))

    def _muxed(self, places: NDArray[np.int64]) -> bytes:
        """The packets at `places` as a Matroska video; nothing is encoded again."""
        buffer = io.BytesIO()
        with (
            av.open(str(self.path)) as container,
            open(self.path, "rb") as file,
            av.open(buffer, "w", format="matroska") as output,
        ):
            source = container.streams.video[0]
            stream = output.add_stream_from_template(source)
            step = max(1, int(self.table[1, 2] - self.table[0, 2])) if self.num_frames > 1 else 1
            for number, (position, size, _, is_key) in enumerate(self.table[places]):
                file.seek(position)
                packet = av.Packet(file.read(size))
                packet.stream = stream
                packet.time_base = source.time_base or Fraction(1, 1000)
                packet.pts = packet.dts = number * step
                packet.is_keyframe = bool(is_key)
                output.mux(packet)
        return buffer.getvalue()
