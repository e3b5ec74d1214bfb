"""Converts annotations from and to the files of labelling tools, such as BORIS, ELAN, VIA and CVAT."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.annotations import CSV_COLUMNS
from pipeline.text import columns, counted, first_names
from tools.labels.formats import CSV, FORMATS, OWN, READABLE, WRITABLE, format_of_output, recognise
from tools.labels.labelled import LabelFile, LabelledVideo, Loss, Report, label_names
from tools.labels.names import merged, short_names
from tools.labels.output import file_names, texts_of, write_all
from tools.labels.text_files import rate, read_text
from train.cli import PATH, Command, Output, check_new, check_new_file, force_option, output_options

DEFAULT_STEM = "annotations"
NAMES_AS_THEY_ARE = (*OWN, "frames")  # tables in which people wrote the names that make-shards looks for


@dataclass(frozen=True)
class ConversionOptions:
    """The options of the command, but for --quiet and --json."""

    files: tuple[Path, ...]
    source: str | None
    target: str | None
    out: Path | None
    fps: str | None
    tiers: tuple[str, ...]
    subset: str | None
    min_score: float
    force: bool


@dataclass(frozen=True)
class FileRead:
    """One file that was read: the name of its format, its videos, and what was not carried."""

    path: Path
    format: str
    videos: list[LabelledVideo]
    report: Report


def read_file(path: Path, options: ConversionOptions) -> FileRead:
    """Read a file in the stated format, or in the one that it is recognised as."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, want files, such as {path}/*.eaf")
    text = read_text(path)
    name = options.source or recognise(path, text)
    if name is None:
        table = f"; a table wants the header {','.join(CSV_COLUMNS)}" if path.suffix.lower() == ".csv" else ""
        raise ValueError(
            f"{path}: in none of the formats{table}; --from says which it is: {', '.join(READABLE)}"
        )
    fps = rate("--fps", options.fps) if options.fps else None
    if options.tiers and not FORMATS[name].has_tiers:
        raise ValueError(f"{path}: --tier: {FORMATS[name].title} has no tiers; leave it out")
    reader, report = FORMATS[name].read, Report()
    assert reader is not None, "a choice of --from"
    videos = reader(LabelFile(path, text, fps, frozenset(options.tiers)), report)
    if not videos:
        raise ValueError(f"{path}: no video in it" + "".join(f"; {line}" for line in report.lines(name)))
    if fps is not None:
        videos = [replace(video, fps=fps) for video in videos]
    return FileRead(path, name, videos, report)


def combined(read: Sequence[FileRead], options: ConversionOptions, report: Report) -> list[LabelledVideo]:
    """The videos of all files, each once, under the names that the data set will have."""
    paths = [video.name for each in read if each.format not in NAMES_AS_THEY_ARE for video in each.videos]
    short = short_names(dict.fromkeys(paths), report)
    videos = [
        replace(
            video,
            name=video.name if each.format in NAMES_AS_THEY_ARE else short[video.name],
            subset=options.subset or video.subset,
            labels=tuple(
                item for item in video.labels if item.score is None or item.score >= options.min_score
            ),
        )
        for each in read
        for video in each.videos
    ]
    return merged(videos, report)


def refuse_all_lost(read: Sequence[FileRead], videos: Sequence[LabelledVideo]) -> None:
    """ValueError where no label could be carried: the videos would seem to be empty."""
    losses = sum((each.report.losses for each in read), Counter[Loss]())
    if losses and not any(video.labels for video in videos):
        found = [counted(number, loss.one, loss.several) for loss, number in losses.items()]
        raise ValueError(
            f"{read[0].path}: no label with a start and an end, only {first_names(found, quoted=False)}; "
            "nothing is written"
        )


def target_of(options: ConversionOptions) -> str:
    """The format to write: of --to, or what the ending of --out says."""
    if options.target is not None:
        return options.target
    if options.out is None:
        return CSV
    found = format_of_output(options.out)
    if found is None:
        raise ValueError(f"{options.out}: its ending is no format's; --to says which: {', '.join(WRITABLE)}")
    return found


def output_files(options: ConversionOptions, target: str, videos: Sequence[LabelledVideo]) -> list[Path]:
    """The files to write: --out, or files in it where it has to be a folder; ValueError if one is there."""
    suffix = FORMATS[target].suffix
    per_video = FORMATS[target].per_video
    out = options.out or Path(DEFAULT_STEM + ("" if per_video else suffix))
    one_file = not per_video or (len(videos) == 1 and bool(out.suffix) and not out.is_dir())
    if one_file:
        check_new_file(out, force=options.force)
        return [out]
    if out.suffix and not out.is_dir():
        title = FORMATS[target].title
        raise ValueError(f"{out}: {title} has one video a file, and there are {len(videos)}; name a folder")
    files = [out / name for name in file_names(videos, target, stem=DEFAULT_STEM)]
    for path in files:
        check_new(path, force=options.force)
    return files


def table_of(read: Sequence[FileRead]) -> str:
    """What was read of each file, as aligned columns."""
    rows: list[tuple[object, ...]] = [("file", "format", "videos", "labels")]
    for each in read:
        labels = sum(len(video.labels) for video in each.videos)
        rows.append((each.path, FORMATS[each.format].title, len(each.videos), labels))
    return columns(rows, "<<>>")


def document_of(
    read: Sequence[FileRead],
    videos: Sequence[LabelledVideo],
    target: str,
    files: Sequence[Path],
    report: Report,
) -> dict[str, Any]:
    """What --json prints."""
    losses = sum((each.report.losses for each in read), report.losses)
    return {
        "format": target,
        "files": files,
        "read": [{"file": each.path, "format": each.format, "videos": len(each.videos)} for each in read],
        "videos": len(videos),
        "labels": sum(len(video.labels) for video in videos),
        "classes": label_names(videos),
        "not_carried": [
            {"what": loss.several, "number": number, "reason": loss.reason} for loss, number in losses.items()
        ],
    }


EPILOG = f"""
\b
Examples:
  leantad convert-annotations coded.boris --out annotations.csv
  leantad convert-annotations elan/*.eaf --tier gesture --out annotations.csv
  leantad convert-annotations cvat.xml --fps 29.97 --subset validation --out validation.csv
  leantad convert-annotations annotations.csv --to via --out to_correct.json

\b
Formats that are read and written:
  {", ".join(name for name in READABLE if name in WRITABLE)}
Read only: {", ".join(name for name in READABLE if name not in WRITABLE)}
Written only: {", ".join(name for name in WRITABLE if name not in READABLE)}
"""
FILE = click.Path(exists=True, path_type=Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=FILE)
@click.option("--from", "source", type=click.Choice(READABLE), help="Format of the files, else recognised.")
@click.option("--to", "target", type=click.Choice(WRITABLE), help="Format to write, else by --out's ending.")
@click.option("--out", type=PATH, help="File to write, or folder.  [annotations.csv]")
@click.option("--fps", help="Frames per second, where times are frame numbers.", metavar="RATE")
@click.option("--tier", "tiers", multiple=True, help="Read only this tier; repeatable.", metavar="NAME")
@click.option("--subset", help="Subset of the videos, such as validation.", metavar="NAME")
@click.option("--min-score", type=click.FloatRange(0), default=0.0, help="Leave out what scores less.")
@force_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    """Convert annotations from and to the FILEs of labelling tools.

    What a file has beyond labels with a start and an end (moments, subjects, comments), or the other format
    has no field for (scores), is counted, one line a kind. A tier is a tier of ELAN, an attribute of VIA, a
    subject of BORIS, or a tag of Label Studio. Some formats hold one video a file: for several, --out is a
    folder.
    """
    options = ConversionOptions(**values)
    target = target_of(options)
    paths = list({path.resolve(): path for path in options.files}.values())
    read = [read_file(path, options) for path in output.progress(paths, "reading", unit="file")]
    report = Report()
    videos = combined(read, options, report)
    refuse_all_lost(read, videos)
    for each in read:
        for line in each.report.lines(each.path):
            output.warn(line)
    files = output_files(options, target, videos)
    write_all(files, texts_of(videos, target, report))
    where = files[0] if len(files) == 1 else files[0].parent
    for line in report.lines(where):
        output.warn(line)
    output.say(table_of(read))
    labels = sum(len(video.labels) for video in videos)
    numbers = f"{counted(len(videos), 'video')}, {counted(labels, 'label')}"
    classes = counted(len(label_names(videos)), "class", "classes")
    output.say(f"written to {where}: {numbers} of {classes}, {FORMATS[target].title}")
    output.document(document_of(read, videos, target, files, report))


if __name__ == "__main__":
    main()
