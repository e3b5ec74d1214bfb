"""Finds actions in video files with a trained detector: no shards, no launcher; JSON, CSV and subtitles.

Each file is encoded as the training data was when it was packed, then decoded, cut into windows and run
through the network as evaluation does it (tools/prediction/detect.py).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.packing.prepare import find_videos
from tools.labels.formats import FORMATS
from tools.labels.predictions import CHOICES, check_formats, write_formats
from tools.prediction.detect import detect_in_files, load_detector
from train.cli import Command, Output, force_option, local_rank_option, output_options
from train.detections import (
    Selection,
    VideoDetections,
    check_outputs,
    format_detections,
    parse_classes,
    write_outputs,
)

if TYPE_CHECKING:
    from train.inference import TrainedNetwork


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command, but for --quiet and --json."""

    videos: tuple[str, ...]
    checkpoint: Path
    out: Path
    min_score: float
    top: int | None
    classes: str | None
    device: str
    overrides: tuple[str, ...]
    formats: tuple[str, ...]
    force: bool


def predict_and_write(
    options: PredictOptions, files: dict[str, Path], output: Output, *, writes: bool
) -> tuple[TrainedNetwork, list[VideoDetections]]:
    """Detect in all files and write what was detected; ValueError, and no file, if none could be read.

    writes: whether this process does, of several that share the files.
    """
    trained = load_detector(options.checkpoint, device=options.device, overrides=options.overrides)
    selection = Selection(parse_classes(options.classes, trained.classes), options.min_score, options.top)
    is_new = not options.out.exists()
    if writes:
        options.out.mkdir(parents=True, exist_ok=True)
    found = detect_in_files(trained, files, selection, output=output)
    if not writes:
        return trained, []
    if all(video.reason is not None for video in found):
        if is_new:
            options.out.rmdir()
        only = f"{found[0].file}: {found[0].reason}; " if len(found) == 1 else ""
        raise ValueError(f"{only}{options.out}: not written, as none of the {len(found)} files could be read")
    write_outputs(options.out, found, metadata={"checkpoint": str(trained.folder)})
    return trained, found


def document_of(out: Path, trained: TrainedNetwork, found: list[VideoDetections]) -> dict[str, Any]:
    """What --json prints."""
    videos = {
        video.key: {
            "file": video.file,
            "duration": video.duration,
            "reason": video.reason,
            "detections": video.detections,
        }
        for video in found
    }
    return {"out": out, "checkpoint": trained.folder, "classes": trained.classes, "videos": videos}


EPILOG = """
\b
Examples:
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3 --format elan --format events-per-hour
  leantad predict recordings/ "more/*.mkv" --checkpoint runs/demo --out found --classes jump,run --top 20
"""
FILE = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--checkpoint", type=FILE, required=True, help="Run folder (its best) or checkpoint folder.")
@click.option("--out", type=FILE, default=Path("predictions"), show_default=True, help="Folder to write.")
@click.option("--min-score", type=click.FloatRange(0), default=0.0, help="Leave out what scores less.")
@click.option("--top", type=click.IntRange(1), help="Keep the best N of each video.", metavar="N")
@click.option("--classes", help="Keep these classes only.", metavar="A,B")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--format", "formats", type=click.Choice(CHOICES), multiple=True, help="Write this, too; repeatable."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@force_option
@output_options
@local_rank_option
@click.pass_context
def main(ctx: click.Context, /, quiet: bool, as_json: bool, local_rank: int | None, **values: Any) -> None:
    """Find actions in VIDEO files, in folders of them (at any depth), or in what globs match.

    Writes detections.json (ActivityNet's format), detections.csv and one .srt of subtitles per video, and
    with --format the files of labelling tools, YouTube chapters, or a table of events per hour. Scores and
    times are those that `leantad eval` would give for the packed file; the options only leave some out.
    A file that cannot be used is named on stderr, the others go on, and the exit code is 1; where none can be
    used, it is 2, and nothing is written. Processes that deepspeed or torchrun started share the files.
    """
    from train.distributed import shared_work

    options = PredictOptions(**values)
    files = find_videos(options.videos)
    check_outputs(options.out, list(files), force=options.force)
    check_formats(options.out, list(files), options.formats, force=options.force)
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    with shared_work() as writes:
        output = Output(quiet or not writes, as_json and writes)
        with output.others_on_stderr():
            trained, found = predict_and_write(options, files, output, writes=writes)
    if not writes:
        return  # rank 0 has the detections of all
    output.say(format_detections(found))
    written, complete = write_formats(options.out, found, options.formats, output)
    others = "".join(f", {FORMATS[name].title}" for name in written)
    output.say(f"written to {options.out}: detections.json, detections.csv, subtitles (.srt){others}")
    output.document({**document_of(options.out, trained, found), "formats": written})
    ctx.exit(0 if complete and all(video.reason is None for video in found) else 1)


if __name__ == "__main__":
    main()
