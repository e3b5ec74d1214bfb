"""What predict found, in the formats of labelling tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from pipeline.packing.probe import FrameReader, Unreadable
from pipeline.packing.rates import stated_rate
from train.cli import Output, check_new
from train.detections import VideoDetections

from .formats import ACTIVITYNET, CSV, FORMATS, WRITABLE
from .labelled import LabelledVideo, Report, TimedLabel, by_start, clean_label
from .output import texts_of, write_all

STEM = "detections"  # of a file with all videos
CHOICES = [name for name in WRITABLE if name not in (CSV, ACTIVITYNET, "srt")]  # others are always written


def output_paths(out: Path, keys: Iterable[str], name: str) -> list[Path]:
    """The files of a format: one for all videos, or one for each, called as its subtitles are."""
    suffix = FORMATS[name].suffix
    return [out / f"{key}{suffix}" for key in keys] if FORMATS[name].per_video else [out / (STEM + suffix)]


def check_formats(out: Path, keys: Sequence[str], names: Iterable[str], *, force: bool) -> None:
    """ValueError if a file of one of the formats is there already, unless `force`."""
    for name in names:
        for path in output_paths(out, keys, name):
            check_new(path, force=force)


def labelled_video(video: VideoDetections) -> LabelledVideo:
    """The detections of a video as labels; it is called by its key, with the ending of its file.

    A video of a feature file is called as that states it; what it names is not opened, as it may be somebody
    else's.
    """
    labels = by_start(
        TimedLabel(start, end, clean_label(detection["label"]), detection["score"])
        for detection in video.detections
        for start, end in [detection["segment"]]
    )
    if video.source is not None:
        return LabelledVideo(video.video_file or video.source, labels, video.duration)
    ending = "" if video.key.endswith(video.file.suffix) else video.file.suffix
    rate, begin = source_rate(video.file), source_begin(video.file)
    return LabelledVideo(video.key + ending, labels, video.duration, rate, path=video.file, begin=begin)


def source_rate(path: Path) -> Fraction | None:
    """The frame rate that a file states, the average where it varies; None where it states none."""
    try:
        with FrameReader(path).opened() as (_, stream):
            return stated_rate(stream)
    except (Unreadable, OSError):
        return None


def source_begin(path: Path) -> Fraction:
    """Seconds at which the first frame of a file is shown, see VideoMetadata; 0 where none can be decoded."""
    try:
        return next(seconds for seconds, _ in FrameReader(path))
    except (Unreadable, OSError):
        return Fraction(0)


def write_formats(
    out: Path, found: Sequence[VideoDetections], names: Iterable[str], output: Output
) -> tuple[Mapping[str, list[Path]], bool]:
    """Write the videos that were read in each format. Returns the files by format, and whether all could be.

    A format that cannot be written (frame numbers of a file that states no rate) is named; the others are.
    """
    read = [video for video in found if video.reason is None]
    videos = [labelled_video(video) for video in read]
    files: dict[str, list[Path]] = {}
    complete = True
    for name in dict.fromkeys(names):
        report = Report()
        try:
            texts = texts_of(videos, name, report)
        except ValueError as error:
            output.error(f"--format {name}: not written: {error}")
            complete = False
            continue
        files[name] = output_paths(out, [video.key for video in read], name)
        write_all(files[name], texts)
        for line in report.lines(f"--format {name}"):
            output.warn(line)
    return files, complete
