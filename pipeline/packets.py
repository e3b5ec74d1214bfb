"""Finds the packets of an encoded video that a set of frames needs, cuts them out, or decodes them by PyAV.

Frame numbers count the video's frames in display order. A file is *regular* when it has one packet with its
own time stamp per frame; then any frame is reached from the key frame before it. Others are decoded from the
start.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from .container import mux_packets, open_video

# libswscale's numbers, which PyAV names only from 18 on; Python 3.10 has 17
FULL_CHR_H_INT, ACCURATE_RND = 1 << 13, 1 << 18
# What DALI's CPU decoder asks of libswscale: chroma interpolated bilinearly, full precision, always BT.601,
# the range as the file says. So the pixels are equal bit for bit (tested); PyAV's own defaults repeat chroma.
RGB_FLAGS = Interpolation.BILINEAR | FULL_CHR_H_INT | ACCURATE_RND


@dataclass(frozen=True)
class Packets:
    """The demuxed video stream of `data`; valid inside `open_packets`.

    packets: in decoding order. packet_indices: (num_frames,) index into `packets` of each frame's packet;
    None: the file is not regular. keyframes: indices into `packets` of the key frames.
    """

    data: bytes
    stream: av.VideoStream
    packets: list[av.Packet[av.VideoStream]]
    packet_indices: NDArray[np.int64] | None
    keyframes: list[int]

    @property
    def reordered(self) -> bool:
        """Whether frames are decoded in another order than they are shown (B-frames)."""
        return self.packet_indices is None or bool((np.diff(self.packet_indices) < 0).any())

    def packet_index(self, frame: int) -> int:
        """The index of a frame's packet in a regular file."""
        assert self.packet_indices is not None
        return int(self.packet_indices[frame])

    def pts(self, frame: int) -> int:
        """The time stamp of a frame in a regular file."""
        return _pts(self.packets[self.packet_index(frame)])


def _pts(packet: av.Packet[av.VideoStream]) -> int:
    assert packet.pts is not None, "in a regular file every packet has a time stamp"
    return packet.pts


@contextmanager
def open_packets(data: bytes, num_frames: int) -> Iterator[Packets]:
    """Demux `data` (nothing is decoded). Raises ValueError if it holds no readable video."""
    with open_video(data) as (container, stream):
        packets = _demux(container, stream)
        stamps = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
        regular = len(set(stamps)) == len(packets) == num_frames
        # AVI stores no time stamps; B-frames' are guessed, wrongly
        regular = regular and (container.format.name != "avi" or stamps == sorted(stamps))
        indices = np.argsort(np.array(stamps, dtype=np.int64), kind="stable") if regular else None
        keyframes = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        yield Packets(data, stream, packets, indices, keyframes)


def _demux(container: InputContainer, stream: av.VideoStream) -> list[av.Packet[av.VideoStream]]:
    packets = []
    try:
        for packet in container.demux(stream):
            if packet.size:  # the empty one at the end flushes the decoder
                packets.append(packet)
    except av.FFmpegError as error:
        raise ValueError(f"broken after packet {len(packets)}: {error.strerror}") from error
    return packets


def packet_runs(video: Packets, wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The runs of packets, (first, last) indices, that suffice to decode `wanted`; disjoint, rising."""
    runs: list[tuple[int, int]] = []
    for frame in wanted:
        index = video.packet_index(frame)
        key = bisect_right(video.keyframes, index) - 1
        # A frame decoded after a key frame but shown before it leans on the key frame before (open GOP).
        while key > 0 and _pts(video.packets[video.keyframes[key]]) > video.pts(frame):
            key -= 1
        first = video.keyframes[key] if key >= 0 else 0
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (min(runs[-1][0], first), max(runs[-1][1], index))
        else:
            runs.append((first, index))
    return runs


def packets_needed(keyframes: ArrayLike, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices, rising, of all packets from the key frame before each `wanted` frame up to it.

    For videos whose packets are in the order shown: frame and packet numbers are the same. wanted: rising.
    """
    needed = np.zeros(int(wanted[-1]) + 1, dtype=bool)
    starts = np.concatenate([[0], np.asarray(keyframes, dtype=np.int64)])
    for start, frame in zip(starts[np.searchsorted(starts, wanted, "right") - 1], wanted, strict=True):
        needed[start : frame + 1] = True
    return np.flatnonzero(needed)


def cut(video: Packets, wanted: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """A video of only the packets that `wanted` needs, and the numbers the wanted frames have in it.

    Why: DALI 2.4 does not seek in memory, so every chunk of a video would be decoded from its first frame on.
    Needs a regular video whose frames are stored in display order; nothing is encoded again.
    """
    indices = packets_needed(video.keyframes, wanted)
    if len(indices) == indices[-1] + 1:  # all from the first packet on
        return video.data, wanted
    packets = [video.packets[index] for index in indices]
    ticks = max(1, packets[0].duration or 1)
    data = mux_packets(video.stream, ((bytes(packet), packet.is_keyframe) for packet in packets), ticks=ticks)
    return data, np.searchsorted(indices, wanted)


def decode_by_av(video: Packets, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Decode the `wanted` frames (rising) to (H, W, 3) uint8 RGB each. ValueError if one is missing."""
    converter, done = VideoReformatter(), 0
    try:
        if video.packet_indices is not None:
            for frame in _decode_runs(video, wanted):
                if frame.pts != video.pts(wanted[done]):
                    break  # the decoder dropped one after the jump: start over from the first frame
                yield _to_rgb(frame, converter)
                done += 1
        for frame in _decode_from_start(video, wanted[done:]) if done < len(wanted) else ():
            yield _to_rgb(frame, converter)
            done += 1
    except av.FFmpegError as error:
        raise ValueError(
            f"frame {wanted[done]} cannot be decoded: {error.strerror}; pack the video again"
        ) from error
    if done < len(wanted):
        raise ValueError(
            f"frame {wanted[done]} is missing: the video ends or breaks before it; pack it again"
        )


def _decode_runs(video: Packets, wanted: NDArray[np.int64]) -> Iterator[av.VideoFrame]:
    decoder = video.stream.codec_context
    decoder.thread_type = "AUTO"
    shown = {video.pts(frame) for frame in wanted}
    for first, last in packet_runs(video, wanted):
        decoder.flush_buffers()  # as a seek does
        for packet in [*video.packets[first : last + 1], None]:
            yield from (frame for frame in decoder.decode(packet) if frame.pts in shown)


def _decode_from_start(video: Packets, wanted: NDArray[np.int64]) -> Iterator[av.VideoFrame]:
    numbers = {video.pts(frame) if video.packet_indices is not None else int(frame) for frame in wanted}
    with open_video(video.data) as (container, stream):
        for count, frame in enumerate(container.decode(stream)):
            number = frame.pts if video.packet_indices is not None else count
            if number in numbers:
                yield frame
                numbers.discard(number)
            if not numbers:
                return


def _to_rgb(frame: av.VideoFrame, converter: VideoReformatter) -> NDArray[np.uint8]:
    """Frame to (H, W, 3) uint8; like DALI on CPU and GPU it ignores the matrix that the file names."""
    rgb = converter.reformat(
        _without_chroma_location(frame),
        format="rgb24",
        interpolation=RGB_FLAGS,
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        threads=1,
    )
    return np.asarray(rgb.to_ndarray(), dtype=np.uint8)


def _without_chroma_location(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy that no longer says where chroma samples lie: libswscale would shift H.264's by half a pixel.

    DALI takes them to lie in the middle of four pixels, whatever the file says; PyAV cannot set that field.
    """
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range = frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows = np.frombuffer(memoryview(source), np.uint8).reshape(-1, source.line_size)
        into = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        width = min(source.line_size, target.line_size)
        into[:, :width] = rows[: len(into), :width]
    return copy
