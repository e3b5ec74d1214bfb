"""Reads from a packed video on disk only the packets that some frames need: long videos stay there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from .container import mux_packets, open_video
from .files import FilePart
from .limits import check_bytes
from .nal_units import begins_anew
from .packets import FRAME_SECONDS, packets_needed
from .records import EncodedFrames


def _head_of(stream: av.VideoStream, first: bytes) -> bytes:
    """A file of the first packet alone; empty for a codec that Matroska does not know, as some in .mov."""
    try:
        return mux_packets(stream, [(first, True)], ticks=1)
    except ValueError:
        return b""


class PackedFile:
    """The packets of a packed video in a file, by number; only where they lie is kept, 16 bytes for each.

    In files of `transcode` (mp4, a packet per frame, in the order shown, key frames on which nothing before
    leans) any frame is reached from the key frame before it. Of other files (B-frames, packets that are not
    to be shown, key frames in name alone as of intra refresh), which are not `in_order`, `encoded_frames`
    gives the whole.
    """

    def __init__(self, file: Path | FilePart, num_frames: int):
        self.part = file if isinstance(file, FilePart) else FilePart(file, 0, file.stat().st_size)
        self.num_frames = num_frames
        table, first, whole = array("q"), b"", True
        with open_video(file) as (container, stream):
            codec, header = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
            for packet in container.demux(stream):
                if packet.size:
                    whole = whole and None not in (packet.pos, packet.pts) and not packet.is_discard
                    if codec == "h264" and packet.is_keyframe:  # HEVC's are none in name alone
                        whole = whole and begins_anew(bytes(packet), codec, header)
                    table.extend((packet.pos or 0, packet.size, packet.pts or 0, packet.is_keyframe))
                    first = first or bytes(packet)
            whole = whole and len(table) == 4 * num_frames
            # opened for each part: it states the codec, in the same time however long the video is
            self._head = _head_of(stream, first) if whole and "mp4" in container.format.name else b""
        positions, self._sizes, stamps, is_key = np.array(table if whole else (), np.int64).reshape(-1, 4).T
        self._positions = positions + self.part.offset
        self.keyframes = np.flatnonzero(is_key)
        starts_with_key = len(self.keyframes) > 0 and self.keyframes[0] == 0
        self.in_order = bool(self._head) and starts_with_key and bool((np.diff(stamps) > 0).all())

    def encoded_frames(self, frames: NDArray[np.int64]) -> EncodedFrames:
        """A video of the packets that `frames` need. Raises ValueError if the file has become shorter."""
        if not self.in_order:
            check_bytes(self.part.size)
            return EncodedFrames(self.part.read(), frames, self.num_frames)
        indices = packets_needed(self.keyframes, np.unique(frames))
        with open_video(self._head) as (_, stream):
            ticks = max(1, round(FRAME_SECONDS / (stream.time_base or FRAME_SECONDS)))
            data = mux_packets(stream, self._read_packets(indices), ticks=ticks)
        return EncodedFrames(data, np.searchsorted(indices, frames).astype(np.int64), len(indices))

    def _read_packets(self, indices: NDArray[np.int64]) -> Iterator[tuple[bytes, bool]]:
        is_key = np.isin(indices, self.keyframes)
        with open(self.part.path, "rb") as file:
            for index, key in zip(indices, is_key, strict=True):
                file.seek(self._positions[index])
                data = file.read(self._sizes[index])
                if len(data) < self._sizes[index]:
                    raise ValueError(f"{self.part.path} has become shorter since it was opened")
                yield data, bool(key)
