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
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av.container import InputContainer
from av.video.plane import VideoPlane
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from .container import mux_packets, open_video
from .nal_units import begins_anew

# libswscale's numbers, which PyAV names only from 18 on; Python 3.10 has 17
FULL_CHR_H_INT, ACCURATE_RND = 1 << 13, 1 << 18
MIN_PART = 32  # packets: decoding them takes several times as long as opening the video once more
FRAME_SECONDS = Fraction(1, 25)  # from one frame of a cut to the next: only their order counts
# What DALI's CPU decoder asks of libswscale: chroma interpolated bilinearly, full precision, always BT.601,
# the range as the file says. So the pixels are equal bit for bit (tested); PyAV's own defaults repeat chroma.
RGB_FLAGS = Interpolation.BILINEAR | FULL_CHR_H_INT | ACCURATE_RND
# libswscale converts these to planes of R, G and B in a third of the time, to equal pixels (tested) where the
# height is even; it rounds otherwise where a row of chroma is shared by less than two rows.
PLANAR_FORMATS = frozenset({"yuv420p", "yuvj420p"})


# Red, green and blue of a frame, (H, W) uint8 each
RgbPlanes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Packets:
    """The demuxed video stream of `data`; valid inside `open_packets`.

    packets: in decoding order. packet_indices: (num_frames,) index into `packets` of each frame's packet;
    None: the file is not regular. keyframes: indices into `packets` of the key frames. is_alone: whether the
    file has no other video stream.
    """

    data: bytes
    num_frames: int
    stream: av.VideoStream
    packets: list[av.Packet[av.VideoStream]]
    packet_indices: NDArray[np.int64] | None
    keyframes: list[int]
    is_alone: bool

    @property
    def reordered(self) -> bool:
        """Whether frames are decoded in another order than they are shown (B-frames)."""
        return self.packet_indices is None or bool((np.diff(self.packet_indices) < 0).any())

    @cached_property
    def frame_numbers(self) -> NDArray[np.int64]:
        """The number of each packet's frame in a regular file: the inverse of packet_indices."""
        assert self.packet_indices is not None
        return np.argsort(self.packet_indices)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Indices of the packets from which on a regular file is one of its own, without those before.

        The first is 0. The others are key frames after which nothing leans on anything before, and nothing is
        shown before anything before.
        """
        shown_last = np.maximum.accumulate(self.frame_numbers)
        codec, header = self.stream.codec_context.codec.canonical_name, self.stream.codec_context.extradata
        found = [
            key
            for key in self.keyframes
            if key and self.frame_numbers[key] == key == shown_last[key - 1] + 1
            if begins_anew(bytes(self.packets[key]), codec, header)
        ]
        return np.array([0, *found], dtype=np.int64)

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
        is_alone = len(container.streams.video) == 1
        yield Packets(data, num_frames, stream, packets, indices, keyframes, is_alone)


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

    Why: DALI 2.4 does not seek in memory, so every chunk of a video would be decoded from its first frame on;
    and of several video streams it takes another than PyAV. Needs a regular video; nothing is encoded again.
    """
    indices = _whole_groups(video, wanted) if video.reordered else packets_needed(video.starts, wanted)
    if len(indices) == indices[-1] + 1 and video.is_alone:  # all from the first packet on
        return video.data, wanted
    frames = video.frame_numbers[indices]
    kept = np.sort(frames)
    packets = [video.packets[index] for index in indices]
    data = mux_packets(
        video.stream,
        ((bytes(packet), packet.is_keyframe) for packet in packets),
        # far more than Matroska's clock of 1 ms: equal time stamps would mix up reordered frames
        ticks=max(1, round(FRAME_SECONDS / (video.stream.time_base or FRAME_SECONDS))),
        shown=np.searchsorted(kept, frames).tolist(),
    )
    return data, np.searchsorted(kept, wanted)


def group_of(video: Packets, frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each frame of a regular video the number of the group, from one start to the next, it is in."""
    return np.searchsorted(video.starts, frames, side="right") - 1


def split(video: Packets, wanted: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The `wanted` frames (rising) in up to `count` parts of about equal work; no two need the same packet.

    A part is worth another decoder from MIN_PART packets on. A video that is not regular stays whole.
    """
    if count == 1 or video.packet_indices is None:
        return [wanted]
    groups, first = np.unique(group_of(video, wanted), return_index=True)
    last = wanted[np.append(first[1:], len(wanted)) - 1]
    ends = np.cumsum(last - video.starts[groups] + 1)  # packets to be decoded up to the end of each group
    count = min(count, max(1, int(ends[-1]) // MIN_PART))
    middles = (ends + np.append(0, ends[:-1])) / 2
    part = (middles * count / ends[-1]).astype(np.int64)
    return np.split(wanted, first[1:][np.diff(part) > 0])


def _whole_groups(video: Packets, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices, rising, of all packets of the groups that hold a wanted frame."""
    numbers = np.arange(len(video.packets))
    return np.flatnonzero(np.isin(group_of(video, numbers), group_of(video, wanted)))


def decode_by_av(video: Packets, wanted: NDArray[np.int64], *, threads: int = 0) -> Iterator[RgbPlanes]:
    """Decode the `wanted` frames (rising) to RGB. ValueError if one is missing.

    threads: of the decoder; 0 lets FFmpeg choose. The pixels do not depend on it.
    """
    converter, done = VideoReformatter(), 0
    try:
        if video.packet_indices is not None:
            for frame in _decode_runs(video, wanted, threads):
                if frame.pts != video.pts(wanted[done]):
                    break  # the decoder dropped one after the jump: start over from the first frame
                yield _to_rgb(frame, converter)
                done += 1
        for frame in _decode_from_start(video, wanted[done:], threads) if done < len(wanted) else ():
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


def _decode_runs(video: Packets, wanted: NDArray[np.int64], threads: int) -> Iterator[av.VideoFrame]:
    decoder = video.stream.codec_context
    if not decoder.is_open:
        decoder.thread_type, decoder.thread_count = "AUTO", threads
    shown = {video.pts(frame) for frame in wanted}
    for first, last in packet_runs(video, wanted):
        decoder.flush_buffers()  # as a seek does
        for packet in [*video.packets[first : last + 1], None]:
            yield from (frame for frame in decoder.decode(packet) if frame.pts in shown)


def _decode_from_start(video: Packets, wanted: NDArray[np.int64], threads: int) -> Iterator[av.VideoFrame]:
    numbers = {video.pts(frame) if video.packet_indices is not None else int(frame) for frame in wanted}
    with open_video(video.data) as (container, stream):
        stream.codec_context.thread_count = threads
        for count, frame in enumerate(container.decode(stream)):
            number = frame.pts if video.packet_indices is not None else count
            if number in numbers:
                yield frame
                numbers.discard(number)
            if not numbers:
                return


def _to_rgb(frame: av.VideoFrame, converter: VideoReformatter) -> RgbPlanes:
    """Like DALI on CPU and GPU it ignores the matrix that the file names."""
    in_planes = frame.format.name in PLANAR_FORMATS and frame.height % 2 == 0
    rgb = converter.reformat(
        _without_chroma_location(frame),
        format="gbrp" if in_planes else "rgb24",
        interpolation=RGB_FLAGS,
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        threads=1,
    )
    if not in_planes:
        red, green, blue = np.asarray(rgb.to_ndarray(), dtype=np.uint8).transpose(2, 0, 1)
        return red, green, blue
    green, blue, red = (rows_of(plane)[:, : rgb.width] for plane in rgb.planes)
    return red, green, blue


def _without_chroma_location(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy that no longer says where chroma samples lie: libswscale would shift H.264's by half a pixel.

    DALI takes them to lie in the middle of four pixels, whatever the file says; PyAV cannot set that field.
    """
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range = frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows, into = rows_of(source), rows_of(target)
        width = min(source.line_size, target.line_size)
        into[:, :width] = rows[: len(into), :width]
    return copy


def rows_of(plane: VideoPlane) -> NDArray[np.uint8]:
    """The bytes of a plane, (rows, bytes of a row with its padding) uint8, not copied."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
