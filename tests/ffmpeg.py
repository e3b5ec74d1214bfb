"""Runs the ffmpeg commands that messages advise; without that program, by what PyAV does in its stead."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

TURNS = {90: ["transpose=cclock"], 180: ["hflip", "vflip"], 270: ["transpose=clock"]}


def follow(advice: str, source: Path, target: Path, **values: object) -> Path:
    """Run the command in a message, from its "ffmpeg" to its "OUT.mp4"; values: what stands for RATE."""
    command = advice[advice.index("ffmpeg ") : advice.index("OUT.mp4") + len("OUT.mp4")]
    for name, value in {"IN": source, "OUT.mp4": target, **values}.items():
        command = command.replace(name, str(value))
    _, *arguments = command.split()
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True)
    else:
        options = dict(zip(arguments, arguments[1:], strict=False))
        rate = Fraction(options["-r"]) if "-r" in options else None
        _encode(_filtered(_decoded(source, rate), options.get("-vf")), target)
    return target


def _decoded(source: Path, rate: Fraction | None) -> Iterator[av.VideoFrame]:
    """The frames of the best track that decode, errors or not; times from the file's start, or by rate."""
    with av.open(str(source)) as container:
        stream, count = container.streams.best("video"), 0
        begin = Fraction(container.start_time or 0, av.time_base)
        if container.start_time is None and rate is None:  # elementary streams
            rate = stream.codec_context.framerate
        for packet in container.demux(stream):
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                frame.time_base = frame.time_base or stream.time_base
                if rate is None:
                    frame.pts -= round(begin / frame.time_base)
                else:  # of the duration, too: the filter fps repeats the last frame for as long
                    frame.pts, frame.duration, frame.time_base = count, 1, 1 / rate
                yield frame
                count += 1


def _filtered(frames: Iterator[av.VideoFrame], chain: str | None) -> Iterator[av.VideoFrame]:
    """The frames upright, all in the format of the first one, through the filters of `chain`."""
    first = next(frames)
    size = (first.width, first.height, first.format.name)
    filters = [*TURNS.get(first.rotation % 360, []), *([chain] if chain else [])]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=size[0], height=size[1], format=size[2], time_base=first.time_base)
    sink = graph.add("buffersink")
    nodes = [graph.add(*one.split("=", 1)) for one in filters]
    graph.link_nodes(source, *nodes, sink).configure()
    for frame in [first, *frames]:
        same = frame if frame is first else frame.reformat(*size, threads=1)
        same.pts, same.time_base = frame.pts, frame.time_base
        source.push(same)
        yield from _ready(sink)
    source.push(None)
    yield from _ready(sink)


def _ready(sink: av.filter.FilterContext) -> Iterator[av.VideoFrame]:
    try:
        while True:
            yield sink.pull()
    except (av.BlockingIOError, av.EOFError):
        return


def _encode(frames: Iterator[av.VideoFrame], target: Path) -> None:
    with av.open(str(target), "w") as output:
        stream, last = output.add_stream("libx264", rate=25), None
        for frame in frames:
            if last is None:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.time_base = frame.time_base
            elif frame.pts <= last:
                continue  # too late to be shown
            last = frame.pts
            picture = frame.reformat(format="yuv420p", threads=1)
            picture.pts, picture.time_base, picture.pict_type = frame.pts, frame.time_base, 0
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
