"""Finds actions in video files with a trained detector: no shards, no launcher; JSON, CSV and subtitles.

Each file is encoded as the training data was when it was packed, then decoded, cut into windows and run
through the network as evaluation does it (tools/prediction/detect.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.packing.prepare import find_videos
from tools.prediction.detect import detect_in_files, load_detector
from train.cli import Command, Output, force_option, output_options
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
    force: bool


def predict_and_write(
    options: PredictOptions, files: dict[str, Path], output: Output
) -> tuple[TrainedNetwork, list[VideoDetections]]:
    """Detect in all files and write what was detected; ValueError, and no file, if none could be read."""
    trained = load_detector(options.checkpoint, device=options.device, overrides=options.overrides)
    selection = Selection(parse_classes(options.classes, trained.classes), options.min_score, options.top)
    is_new = not options.out.exists()
    options.out.mkdir(parents=True, exist_ok=True)
    found = detect_in_files(trained, files, selection, output=output)
    if all(video.reason is not None for video in found):
        if is_new:
            options.out.rmdir()
        raise ValueError(f"{options.out}: not written, as none of the {len(found)} files could be read")
    write_outputs(options.out, found, metadata={"checkpoint": str(trained.source)})
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
    return {"out": out, "checkpoint": trained.source, "classes": trained.classes, "videos": videos}


EPILOG = """
\b
Examples:
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3
  leantad predict recordings/ "more/*.mkv" --checkpoint runs/demo --out found --classes jump,run --top 20
"""
FILE = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--checkpoint", type=FILE, required=True, help="Run (its best), checkpoint or model file.")
@click.option("--out", type=FILE, default=Path("predictions"), show_default=True, help="Folder to write.")
@click.option("--min-score", type=click.FloatRange(0), default=0.0, help="Leave out what scores less.")
@click.option("--top", type=click.IntRange(1), help="Keep the best N of each video.", metavar="N")
@click.option("--classes", help="Keep these classes only.", metavar="A,B")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@force_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, quiet: bool, as_json: bool, **values: Any) -> None:
    """Find actions in VIDEO files, in folders of them (at any depth), or in what globs match.

    Writes detections.json (ActivityNet's format), detections.csv and one .srt of subtitles per video. Scores
    and times are those that `leantad eval` would give for the packed file; the options only leave some out.
    A file that cannot be used is named on stderr, the others go on, and the exit code is 1; where none can be
    used, it is 2, and nothing is written.
    """
    options, output = PredictOptions(**values), Output(quiet, as_json)
    files = find_videos(options.videos)
    check_outputs(options.out, list(files), force=options.force)
    with output.others_on_stderr():
        trained, found = predict_and_write(options, files, output)
    output.say(format_detections(found))
    output.say(f"written to {options.out}: detections.json, detections.csv, subtitles (.srt)")
    output.document(document_of(options.out, trained, found))
    ctx.exit(1 if any(video.reason is not None for video in found) else 0)


if __name__ == "__main__":
    main()
