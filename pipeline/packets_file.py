"""Reads from a packed video on disk only the packets that some frames need: long videos stay there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .container import mux_packets, open_video
from .limits import check_bytes
from .packets import packets_needed
from .records import EncodedFrames


class PackedFile:
    """The packets of a video file, by number; only their positions are kept in memory.

    In files of `transcode` (mp4, a packet per frame, in the order shown, key frames on which nothing before
    leans) any frame is reached from the key frame before it. Of other files (B-frames,
    packets that are not to be shown) `encoded_frames` gives the whole.
    """

    def __init__(self, path: Path, num_frames: int):
        self.path, self.num_frames = path, num_frames
        with open_video(path) as (container, stream):
            packets = [
                (packet.pos, packet.size, None if packet.is_discard else packet.pts, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.size
            ]
            is_mp4 = "mp4" in container.format.name
        whole = all(None not in packet for packet in packets) and len(packets) == num_frames
        self.table = np.array(packets if whole else [], dtype=np.int64).reshape(-1, 4)
        stamps = self.table[:, 2]
        self.keyframes = np.flatnonzero(self.table[:, 3])
        starts_with_key = len(self.keyframes) > 0 and self.keyframes[0] == 0
        self.in_order = is_mp4 and whole and starts_with_key and bool((np.diff(stamps) > 0).all())

    def encoded_frames(self, frames: NDArray[np.int64]) -> EncodedFrames:
        """A video of the packets that `frames` need."""
        if not self.in_order:
            check_bytes(self.path.stat().st_size)
            return EncodedFrames(self.path.read_bytes(), frames, self.num_frames)
        indices = packets_needed(self.keyframes, np.unique(frames))
        stamps = self.table[:, 2]
        ticks = max(1, int(stamps[1] - stamps[0])) if self.num_frames > 1 else 1
        with open_video(self.path) as (_, stream):
            data = mux_packets(stream, self._read_packets(indices), ticks=ticks)
        return EncodedFrames(data, np.searchsorted(indices, frames).astype(np.int64), len(indices))

    def _read_packets(self, indices: NDArray[np.int64]) -> Iterator[tuple[bytes, bool]]:
        with open(self.path, "rb") as file:
            for position, size, _, is_keyframe in self.table[indices]:
                file.seek(position)
                yield file.read(size), bool(is_keyframe)
