"""The same videos packed by `transcode`, by a plain PyAV loop and by FFmpeg's command line, one thread each.

All decode a file, choose its frames for the rate, scale and encode them with the settings of `VideoEncoder`.
Only `transcode` checks what it decodes and what it wrote, and knows rotation, colours and irregular times.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path

import av

from pipeline.files import write_bytes
from pipeline.packing.encoder import ENCODERS, SCALING
from pipeline.packing.transcode import EncodingSpec, transcode
from pipeline.temporary_folder import temporary_folder
from tools.benchmarks.common import cpu_clock
from tools.benchmarks.sources import files_of, rendered

FPS = 30  # of the built-in videos
STAMP_ROUNDING = 0.1  # frames by which a time stamp may come too early
TIMES_LARGER = 2  # a side of a built-in video, of what it is packed to


@dataclass(frozen=True)
class PackOptions:
    """One run of the benchmark; videos None: built-in ones are rendered."""

    videos: Path | None
    codecs: tuple[str, ...]
    count: int  # of videos, at most
    seconds: float  # of a built-in video
    fps: Fraction  # after packing, at most; 0 keeps that of the source, as make-shards does
    short_side: int  # pixels after packing
    repeats: int


@dataclass(frozen=True)
class Target:
    """What a video is packed to, of any packer: codec, frames per second, pixels, frames of a group."""

    codec: str
    fps: Fraction
    width: int
    height: int
    gop: int


@dataclass(frozen=True)
class PackRow:
    """One packer on all videos in a codec."""

    codec: str
    packer: str
    version: str
    frames: int | None = None
    kilobytes: int | None = None
    cpu_seconds: float | None = None
    times_ours: float | None = None  # its CPU seconds


Packer = Callable[[Path, Path, Target], None]


def av_loop(source: Path, out: Path, target: Target) -> None:
    """The loop one would write first: the frame that comes at k / fps or next is scaled and encoded."""
    name, options = ENCODERS[target.codec]
    with av.open(str(source)) as container, av.open(str(out), "w", format="mp4") as result:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        encoded = result.add_stream(name, rate=target.fps, options=dict(options))
        assert isinstance(encoded, av.VideoStream)
        encoded.width, encoded.height, encoded.pix_fmt = target.width, target.height, "yuv420p"
        encoded.codec_context.gop_size, encoded.codec_context.thread_count = target.gop, 1
        number = 0
        for frame in container.decode(stream):
            if frame.time is None or frame.time * target.fps < number - STAMP_ROUNDING:
                continue
            scaled = frame.reformat(target.width, target.height, "yuv420p", interpolation=SCALING, threads=1)
            scaled.pts, scaled.time_base = number, 1 / target.fps
            scaled.pict_type = av.video.frame.PictureType.NONE
            result.mux(encoded.encode(scaled))
            number += 1
        result.mux(encoded.encode())


def ffmpeg_command(program: str, source: Path, out: Path, target: Target) -> list[str]:
    """The command line with which FFmpeg decodes, chooses, scales and encodes in the same way."""
    name, options = ENCODERS[target.codec]
    named = {{"b": "b:v"}.get(option, option): value for option, value in options.items()}
    encoder = [word for option, value in named.items() for word in (f"-{option}", value)]
    scale = f"scale={target.width}:{target.height}:flags=bicubic+accurate_rnd"
    return [
        *(program, "-nostdin", "-v", "error", "-threads", "1", "-i", str(source.resolve()), "-an"),
        *("-filter_threads", "1", "-vf", f"fps={target.fps},{scale}"),
        *("-c:v", name, "-threads", "1", *encoder, "-g", str(target.gop), "-keyint_min", str(target.gop)),
        *("-pix_fmt", "yuv420p", "-movflags", "+faststart", "-y", str(out)),
    ]


def _ffmpeg(program: str, source: Path, out: Path, target: Target) -> None:
    done = subprocess.run(ffmpeg_command(program, source, out, target), capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"{source.name}: {program} ends with exit code {done.returncode}: {last}")


def _ffmpeg_version(program: str) -> str:
    text = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=10).stdout
    found = re.match(r"ffmpeg version ([^\s-]+)", text)
    return found[1] if found else "unknown"


def measure(options: PackOptions, codec: str) -> list[PackRow]:
    """A row for each packer; they take turns, and the least of the repeats counts.

    Raises Unreadable for a video that cannot be packed, ValueError where FFmpeg cannot.
    """
    spec = EncodingSpec(codec=codec, fps=options.fps, short_side=options.short_side)
    with temporary_folder() as folder:
        sources = _sources(options, folder)
        targets = [_target(source, spec) for source in sources]

        def ours(source: Path, out: Path, target: Target) -> None:
            write_bytes(out, transcode(source, spec)[0])

        program = shutil.which("ffmpeg")
        packers: dict[str, tuple[str, Packer | None]] = {
            "leantad": (version("leantad"), ours),
            "PyAV loop": (version("av"), av_loop),
            "FFmpeg": (_ffmpeg_version(program), partial(_ffmpeg, program))
            if program
            else ("not installed", None),
        }
        least: dict[str, float] = {}
        made: dict[str, tuple[int, int]] = {}
        for _ in range(options.repeats):
            for name, (_, pack) in packers.items():
                if pack is not None:
                    outs = [folder / f"{name} {number}.mp4" for number in range(len(sources))]
                    seconds = _cpu_seconds(pack, sources, outs, targets)
                    least[name] = min(least.get(name, float("inf")), seconds)
                    made[name] = sum(map(_num_frames, outs)), sum(out.stat().st_size for out in outs)
    return [
        PackRow(
            codec=codec,
            packer=name,
            version=described,
            frames=made[name][0],
            kilobytes=round(made[name][1] / 1000),
            cpu_seconds=round(least[name], 3),
            times_ours=round(least[name] / least["leantad"], 3),
        )
        if name in least
        else PackRow(codec, name, described)
        for name, (described, _) in packers.items()
    ]


def _sources(options: PackOptions, folder: Path) -> list[Path]:
    if options.videos is not None:
        return files_of(options.videos, options.count)
    videos = rendered(options.count, seconds=options.seconds, fps=FPS, size=TIMES_LARGER * options.short_side)
    files = []
    for number, data in enumerate(videos):
        files.append(folder / f"built-in {number}.mp4")
        write_bytes(files[-1], data)
    return files


def _target(source: Path, spec: EncodingSpec) -> Target:
    """What `transcode` makes of a video."""
    _, _, metadata = transcode(source, spec)
    return Target(spec.codec, metadata.fps, metadata.width, metadata.height, spec.gop)


def _cpu_seconds(pack: Packer, sources: list[Path], outs: list[Path], targets: list[Target]) -> float:
    """Of this process and those that it waits for."""
    begun = cpu_clock()
    for source, out, target in zip(sources, outs, targets, strict=True):
        pack(source, out, target)
    return cpu_clock() - begun


def _num_frames(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
