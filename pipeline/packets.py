"""Packets of an encoded video: which ones a set of frames needs, a cut of just those, decoding them by PyAV.

Frame numbers count the video's frames in display order. A file is *regular* when it has one packet with its
own time stamp per frame; then any frame is reached from the key frame before it. Others are decoded from the
start.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

# libswscale's numbers, which PyAV names only from 18 on; Python 3.10 has 17
FULL_CHR_H_INT, ACCURATE_RND = 1 << 13, 1 << 18
# What DALI's CPU decoder asks of libswscale: chroma interpolated bilinearly, full precision, always BT.601,
# the range as the file says. So the pixels are equal bit for bit (tested); PyAV's own defaults repeat chroma.
RGB_FLAGS = Interpolation.BILINEAR | FULL_CHR_H_INT | ACCURATE_RND


@dataclass(frozen=True)
class Packets:
    """The demuxed video stream of `data`; valid inside `open_packets`."""

    data: bytes
    stream: av.video.stream.VideoStream
    packets: list[av.Packet]  # in decoding order
    places: (
        NDArray[np.int64] | None
    )  # (num_frames,) place of each frame's packet in `packets`; None: not regular
    keys: list[int]  # places of the key frames' packets

    @property
    def reordered(self) -> bool:
        """Whether frames are decoded in another order than they are shown (B-frames)."""
        return self.places is None or bool((np.diff(self.places) < 0).any())

    def pts(self, frame: int) -> int:
        return self.packets[self.places[frame]].pts


@contextmanager
def open_packets(data: bytes, num_frames: int) -> Iterator[Packets]:
    """Demux `data` (nothing is decoded). Raises ValueError if it holds no readable video."""
    try:
        container = av.open(io.BytesIO(data))
    except av.FFmpegError as error:
        raise ValueError(f"not a readable video: {error.strerror}") from error
    with container:
        if not container.streams.video:
            raise ValueError("the file holds no video stream")
        stream = container.streams.video[0]
        packets = _demux(container, stream)
        pts = [packet.pts for packet in packets]
        regular = None not in pts and len(set(pts)) == len(pts) == num_frames
        regular = regular and not any(packet.is_discard for packet in packets)
        if (
            container.format.name == "avi" and regular
        ):  # AVI stores no time stamps; B-frames' are guessed, wrongly
            regular = pts == sorted(pts)
        places = np.argsort(np.array(pts, dtype=np.int64), kind="stable") if regular else None
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        yield Packets(data, stream, packets, places, keys)


def _demux(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> list[av.Packet]:
    packets = []
    try:
        for packet in container.demux(stream):
            if packet.size:  # the empty one at the end flushes the decoder
                packets.append(packet)
    except av.FFmpegError as error:
        raise ValueError(f"broken after packet {len(packets)}: {error.strerror}") from error
    return packets


def runs_of(video: Packets, wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Stretches of packets, (first, last) places, that suffice to decode `wanted`; disjoint, rising."""
    runs: list[tuple[int, int]] = []
    for frame in wanted:
        place = int(video.places[frame])
        key = bisect_right(video.keys, place) - 1
        # A frame decoded after a key frame but shown before it leans on the key frame before (open GOP).
        while key > 0 and video.packets[video.keys[key]].pts > video.pts(frame):
            key -= 1
        first = video.keys[key] if key >= 0 else 0
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (min(runs[-1][0], first), max(runs[-1][1], place))
        else:
            runs.append((first, place))
    return runs


def cut(video: Packets, wanted: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """A video of only the packets that `wanted` needs, and the numbers the wanted frames have in it.

    Why: DALI 2.4 does not seek in memory, so every piece of a video would be decoded from its first frame on.
    Needs a regular video whose frames are stored in display order; nothing is encoded again.
    """
    runs = runs_of(video, wanted)
    if len(runs) == 1 and runs[0][0] == 0:
        return video.data, wanted
    places = np.concatenate([np.arange(first, last + 1) for first, last in runs])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream_from_template(video.stream)
        for number, place in enumerate(places):
            packet = av.Packet(bytes(video.packets[place]))
            packet.stream, packet.time_base = stream, video.stream.time_base
            packet.pts = packet.dts = number * max(1, video.packets[place].duration or 1)
            packet.is_keyframe = video.packets[place].is_keyframe
            output.mux(packet)
    return buffer.getvalue(), np.searchsorted(places, video.places[wanted])


def decode_by_av(video: Packets, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Decode the `wanted` frames (rising) to (H, W, 3) uint8 RGB each. ValueError if one is missing."""
    converter, done = VideoReformatter(), 0
    try:
        if video.places is not None:
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
    for first, last in runs_of(video, wanted):
        decoder.flush_buffers()  # as a seek does
        for packet in [*video.packets[first : last + 1], None]:
            yield from (frame for frame in decoder.decode(packet) if frame.pts in shown)


def _decode_from_start(video: Packets, wanted: NDArray[np.int64]) -> Iterator[av.VideoFrame]:
    numbers = {video.pts(frame) if video.places is not None else int(frame) for frame in wanted}
    with av.open(io.BytesIO(video.data)) as container:
        for count, frame in enumerate(container.decode(video=0)):
            number = frame.pts if video.places is not None else count
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
    return rgb.to_ndarray()


def _without_chroma_location(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy that no longer says where chroma samples lie: libswscale would shift H.264's by half a pixel.

    DALI takes them to lie in the middle of four pixels, whatever the file says; PyAV cannot set that field.
    """
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range = frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        width = min(source.line_size, target.line_size)
        into[:, :width] = rows[: len(into), :width]
    return copy
