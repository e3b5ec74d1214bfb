"""The same clips of the same videos by our decoder and by those that others use, one thread each."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import decode_on_cpu
from pipeline.packets import open_packets
from pipeline.packing.transcode import EncodingSpec, transcode
from tools.benchmarks.sources import files_of, rendered

FPS = 15  # of the built-in videos
ONE_CHUNK = 1 << 20  # MiB: all frames of a video at once, as the others have them


@dataclass(frozen=True)
class DataOptions:
    """One run of the benchmark; videos None: built-in ones are rendered."""

    videos: Path | None
    codecs: tuple[str, ...]
    count: int  # of videos, at most
    seconds: float  # of a built-in video
    short_side: int  # pixels
    clips: int  # of each video
    frames: int  # of a clip
    stride: int  # from one frame of a clip to the next
    repeats: int

    @property
    def span(self) -> int:
        """Frames from the first one of a clip to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class EncodedVideo:
    """A video in memory and the frame numbers of its clips, (N, L)."""

    data: bytes
    codec: str
    num_frames: int
    fps: Fraction
    clips: NDArray[np.int64]


@dataclass(frozen=True)
class DataRow:
    """One decoder on all videos of a codec; off: levels of 255 from our pixels, the largest and the mean."""

    codec: str
    decoder: str
    version: str
    clips: int = 0
    clips_per_second: float | None = None
    cpu_seconds: float | None = None
    times_ours: float | None = None  # its CPU seconds
    most_off: int | None = None
    mean_off: float | None = None


def our_clips(video: EncodedVideo) -> NDArray[np.uint8]:
    """(N, L, H, W, 3) as training decodes them: each frame once, before it is resized."""
    wanted, inverse = np.unique(video.clips, return_inverse=True)
    with open_packets(video.data, video.num_frames) as packets:
        chunks = decode_on_cpu(packets, wanted, codec=video.codec, decode_chunk_mib=ONE_CHUNK, threads=1)
        (chunk,) = chunks
        clips: NDArray[np.uint8] = chunk.numpy()[inverse.reshape(video.clips.shape)]
    return clips


def av_clips(video: EncodedVideo) -> NDArray[np.uint8]:
    """The plain loop: for each clip a seek, then decoding until its last frame."""
    with av.open(io.BytesIO(video.data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        clips = [_av_clip(container, stream, video.fps, clip) for clip in video.clips]
    return np.stack(clips)


def _av_clip(
    container: av.container.InputContainer, stream: av.VideoStream, fps: Fraction, clip: NDArray[np.int64]
) -> NDArray[np.uint8]:
    tick = stream.time_base or Fraction(0)
    container.seek(round(int(clip[0]) / fps / tick), stream=stream)
    wanted, found = set(clip.tolist()), []
    for frame in container.decode(stream):
        number = round((frame.pts or 0) * tick * fps)
        if number in wanted:
            found.append(frame.to_ndarray(format="rgb24"))
        if number >= clip[-1]:
            break
    return np.stack(found)


def decord_clips(decord: Any, video: EncodedVideo) -> NDArray[np.uint8]:
    """decord's reader, a call for each clip."""
    reader = decord.VideoReader(io.BytesIO(video.data), num_threads=1)
    return np.stack([reader.get_batch(clip.tolist()).asnumpy() for clip in video.clips])


def torchcodec_clips(torchcodec: Any, video: EncodedVideo) -> NDArray[np.uint8]:
    """torchcodec's decoder, a call for all clips."""
    decoder = torchcodec.VideoDecoder(video.data, num_ffmpeg_threads=1, dimension_order="NHWC")
    frames = decoder.get_frames_at(video.clips.reshape(-1).tolist()).data.numpy()
    clips: NDArray[np.uint8] = frames.reshape(*video.clips.shape, *frames.shape[1:])
    return clips


Decoder = Callable[[EncodedVideo], NDArray[np.uint8]]
OTHERS = {"decord": ("decord", decord_clips), "torchcodec": ("torchcodec.decoders", torchcodec_clips)}


def decoders() -> dict[str, Decoder | None]:
    """By name; None: the library is not installed, or does not load."""
    found: dict[str, Decoder | None] = {"leantad": our_clips, "PyAV loop": av_clips}
    for name, (module, function) in OTHERS.items():
        try:
            found[name] = partial(function, import_module(module))
        except (ImportError, OSError, RuntimeError):  # torchcodec needs FFmpeg's shared libraries
            found[name] = None
    return found


def _version(name: str) -> str:
    package = {"PyAV loop": "av"}.get(name, name)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def make_videos(options: DataOptions, codec: str) -> Iterator[EncodedVideo]:
    """The videos, packed as make-shards does with this codec, and their clips."""
    rng = np.random.default_rng(0)
    for data in _sources(options):
        spec = EncodingSpec(codec=codec, fps=Fraction(0), short_side=options.short_side, side_multiple=16)
        encoded, _, metadata = transcode(data, spec)
        last = metadata.num_frames - options.span
        if last < 0:
            raise ValueError(
                f"--frames, --stride: a clip takes {options.span} frames, a video has {metadata.num_frames}; "
                "want shorter clips or longer videos"
            )
        starts = np.sort(rng.integers(0, last + 1, options.clips))
        clips = starts[:, None] + np.arange(options.frames) * options.stride
        yield EncodedVideo(encoded, codec, metadata.num_frames, metadata.fps, clips)


def _sources(options: DataOptions) -> Iterator[Path | bytes]:
    if options.videos is not None:
        return iter(files_of(options.videos, options.count))
    return rendered(options.count, seconds=options.seconds, fps=FPS, size=options.short_side)


def measure(options: DataOptions, codec: str) -> list[DataRow]:
    """A row for each decoder; they take turns, and the least of the repeats counts."""
    videos, found = list(make_videos(options, codec)), decoders()
    ours = [our_clips(video) for video in videos]
    least: dict[str, tuple[float, float]] = {}
    off: dict[str, tuple[int, float]] = {}
    for turn in range(options.repeats + 1):  # the first turn warms up
        for name, decode in found.items():
            if decode is not None:
                wall, cpu, differences = _timed(decode, videos, ours if turn == 0 else [])
                if turn == 0:
                    off[name], least[name] = differences, (float("inf"), float("inf"))
                else:
                    least[name] = min(least[name][0], wall), min(least[name][1], cpu)
    count = len(videos) * options.clips
    return [
        DataRow(
            codec=codec,
            decoder=name,
            version=_version(name),
            clips=count,
            clips_per_second=round(count / least[name][0], 2),
            cpu_seconds=round(least[name][1], 4),
            times_ours=round(least[name][1] / least["leantad"][1], 3),
            most_off=off[name][0],
            mean_off=round(off[name][1], 3),
        )
        if name in least
        else DataRow(codec, name, _version(name))
        for name in found
    ]


def _timed(
    decode: Decoder, videos: list[EncodedVideo], ours: list[NDArray[np.uint8]]
) -> tuple[float, float, tuple[int, float]]:
    """Wall and CPU seconds of all videos, and how far the pixels are from ours: the most, and the mean."""
    begun, spent = time.perf_counter(), time.process_time()
    clips = [decode(video) for video in videos]
    seconds = time.perf_counter() - begun, time.process_time() - spent
    gaps = [np.abs(a.astype(np.int16) - b) for a, b in zip(clips, ours, strict=False)]
    most = max((int(gap.max()) for gap in gaps), default=0)
    mean = float(np.mean([gap.mean() for gap in gaps])) if gaps else 0.0
    return *seconds, (most, mean)
