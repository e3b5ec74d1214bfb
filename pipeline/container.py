"""Opens video files by PyAV, and writes packets into a new one; nothing is decoded or encoded."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition

from .files import FilePart
from .limits import check_stream, limits


@contextmanager
def open_video(
    source: str | Path | FilePart | bytes, *, options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """The open container and the video stream that players show: the default one, else the first; no cover.

    source: a file, a part of one that is a video itself, or bytes. options: FFmpeg's for opening it. Raises
    ValueError when it is no video, or one beyond the limits (limits.py).
    """
    # "file:", as a colon in a name would make its beginning a protocol
    file: io.BytesIO | str
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    elif isinstance(source, FilePart):
        file = f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.path}"
    else:
        file = f"file:{source}"
    try:
        container = av.open(file, "r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise ValueError(f"not a readable video: {error.strerror}") from error
    with container:
        streams = video_tracks(container)
        if not streams:
            raise ValueError("no video stream in it")
        default = (stream for stream in streams if stream.disposition & Disposition.default)
        stream = next(default, streams[0])
        check_stream(stream)
        # of a picture that grows in mid-stream, or that the head states smaller than it is
        stream.codec_context.options = {"max_pixels": str(limits().pixels)}
        yield container, stream


def video_tracks(container: InputContainer) -> list[av.VideoStream]:
    """The video streams that are no cover pictures."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def mux_packets(
    template: av.VideoStream,
    packets: Iterable[tuple[bytes, bool]],
    *,
    ticks: int,
    shown: Sequence[int] | None = None,
) -> bytes:
    """Packets (data, whether it is a key frame) of the stream `template` as the bytes of a Matroska file.

    The packets are in decoding order. shown: the number of each one's frame in the order of display, a
    permutation; None: decoded as they are shown. A frame is shown `ticks` of the template's clock after the
    one before.
    """
    delay = max((number - rank for number, rank in enumerate(shown or ())), default=0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream_from_template(template, opaque=True)
        for number, (data, is_keyframe) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream = stream
            packet.time_base = template.time_base or Fraction(1, 1000)
            packet.dts = number * ticks
            packet.pts = ((number if shown is None else shown[number]) + delay) * ticks
            packet.is_keyframe = is_keyframe
            output.mux(packet)
    return buffer.getvalue()
