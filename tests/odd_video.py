"""Videos as cameras, recorders and tools leave them: cut, damaged, joined; frames have painted numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.stream import Disposition
from painted_video import OPTIONS, number_of, painted

from pipeline.packing.probe import FrameReader

T = TypeVar("T")
FPS, GOP = 25, 24
QUALITY = {"b": "2000000"}
# encoder, container: what a video comes in
KINDS = [
    *(("libx264", name) for name in ("mp4", "matroska", "mpegts", "avi", "flv")),
    *(("libx265", name) for name in ("mp4", "matroska", "mpegts")),
    *(("mpeg2video", name) for name in ("mpegts", "vob", "matroska", "mxf")),
    *(("mpeg4", name) for name in ("avi", "mp4")),
    *(("libvpx-vp9", name) for name in ("webm", "mp4")),
    *(("libvpx", "webm"), ("mjpeg", "avi"), ("wmv2", "asf"), ("flv1", "flv"), ("libsvtav1", "mp4")),
]


def in_own_thread(function: Callable[..., T]) -> Callable[..., T]:
    """Decorator: for root SVT-AV1 makes the thread that encodes a real-time one, which starves others."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> T:
        with ThreadPoolExecutor(1) as own_thread:
            return own_thread.submit(function, *args, **options).result()

    return run


@in_own_thread
def video(
    folder: Path,
    codec: str = "libx264",
    container: str = "mp4",
    *,
    stamps: Iterable[int] = range(72),
    fps: int = FPS,
    size: tuple[int, int] = (64, 64),
    pix_fmt: str | None = None,
    sound_from: float | None = None,
    **options: str,
) -> bytes:
    """Frame k has the number k painted and is shown from stamps[k] / fps s on; of GOP frames, with B-frames.

    sound_from: seconds at which a sound track of 1 s begins.
    """
    path = folder / "made.bin"  # a file: mp4 moves its index to the front
    options = {"preset": "10", "crf": "30"} if codec == "libsvtav1" else OPTIONS.get(codec, QUALITY) | options
    muxing = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
    with av.open(str(path), "w", format=container, options=muxing) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.codec_context.gop_size = GOP
        if codec in ("mpeg2video", "mpeg4"):
            stream.codec_context.max_b_frames = 2
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        if sound_from is not None:
            write_sound(output, sound_from)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(painted(number, *size), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt, threads=1)
            frame.pts, frame.time_base = stamp, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path.read_bytes()


def write_sound(output: av.container.OutputContainer, start: float) -> None:
    """A second of silence from `start` s on."""
    stream = output.add_stream("aac" if "mp4" in output.format.name else "libopus", rate=48000)
    for number in range(50):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 48000, round(start * 48000) + number * 960
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def remuxed(data: bytes, container: str, *, skip: int = 0) -> bytes:
    """The packets of a video without the first `skip` ones, as tools cut that do not encode."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets[skip:]:
            packet.stream = stream
            output.mux(packet)
    return buffer.getvalue()


def packet_bytes(data: bytes, number: int) -> tuple[int, int]:
    """Where the packet `number` of a video begins and ends in its file; roughly where formats do not say."""
    with av.open(io.BytesIO(data)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        start = packets[number].pos or len(data) * number // len(packets)
        return start, start + packets[number].size


def two_tracks(videos: Sequence[bytes], path: Path, *, default: int) -> Path:
    """A file with a track for each video; that of this number is the default one."""
    with ExitStack() as stack:
        sources = [stack.enter_context(av.open(io.BytesIO(data))).streams.video[0] for data in videos]
        output = stack.enter_context(av.open(str(path), "w"))
        tracks = [output.add_stream_from_template(source) for source in sources]
        for number, track in enumerate(tracks):
            track.disposition = Disposition.default if number == default else Disposition(0)
        packets = [
            (packet, track)
            for source, track in zip(sources, tracks, strict=True)
            for packet in source.container.demux(source)
            if packet.size
        ]
        for packet, track in sorted(packets, key=lambda pair: pair[0].dts * pair[0].time_base):
            packet.stream = track
            output.mux(packet)
    return path


def scratched(data: bytes, start: int, end: int) -> bytes:
    """The bytes with every third one from start to end inverted."""
    changed = bytearray(data)
    for position in range(start, end, 3):
        changed[position] ^= 0xFF
    return bytes(changed)


def shown(data: bytes | Path, *, strict: bool = False) -> tuple[list[tuple[float, int]], dict[str, str]]:
    """(seconds, painted number) of each frame that is read, and the remarks by kind."""
    reader = FrameReader(data, strict=strict)
    frames = [(float(time), number_of(frame.to_ndarray(format="rgb24", threads=1))) for time, frame in reader]
    return frames, dict(reader.metadata.remarks)


def numbers_shown(data: bytes | Path) -> list[int]:
    return [number for _, number in shown(data)[0]]
