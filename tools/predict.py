"""Finds actions in video files with a trained detector: no shards, no launcher; JSON, CSV and subtitles.

Each file is encoded as the training data was when it was packed, then decoded, cut into windows and run
through the network as evaluation does it (tools/prediction/detect.py).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.lock import writing_folder
from pipeline.packing.prepare import left_out
from tools.labels.formats import FORMATS
from tools.labels.predictions import CHOICES, check_formats, write_formats
from tools.prediction.detect import auto_thresholds, detect_in_files, load_detector, metadata_of
from tools.prediction.features import find_inputs
from train.cli import (
    PATH,
    Command,
    Output,
    force_option,
    launched_as_first,
    local_rank_option,
    output_options,
    remark_on_lock,
    written,
)
from train.detection_texts import format_detections
from train.detections import Selection, VideoDetections, check_outputs, parse_classes, write_outputs

if TYPE_CHECKING:
    from train.inference import TrainedNetwork


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command, but for --quiet and --json."""

    videos: tuple[str, ...]
    checkpoint: Path
    out: Path
    min_score: float
    auto_threshold: bool
    top: int | None
    classes: tuple[str, ...]
    device: str
    overrides: tuple[str, ...]
    formats: tuple[str, ...]
    force: bool


def predict_and_write(
    options: PredictOptions, files: dict[str, Path], output: Output, *, writes: bool
) -> tuple[TrainedNetwork, list[VideoDetections], str | None]:
    """Detect in all files and write what was detected; ValueError, and no file, if none could be read.

    writes: whether this process does, of several that share the files. Returns why the detections could not
    be written, too, if so.
    """
    trained = load_detector(options.checkpoint, device=options.device, overrides=options.overrides)
    classes = parse_classes(options.classes, trained.classes)
    thresholds = auto_thresholds(trained, output) if options.auto_threshold else {}
    selection = Selection(classes, options.min_score, options.top, thresholds)
    found = detect_in_files(trained, files, selection, output=output)
    if not writes:
        return trained, [], None
    if all(video.reason is not None for video in found):
        only = f"{found[0].file}: {found[0].reason}; " if len(found) == 1 else ""
        raise ValueError(f"{only}{options.out}: not written, as none of the {len(found)} files could be read")
    metadata = metadata_of(trained, files, thresholds)
    failure = written(
        lambda: write_outputs(options.out, found, metadata=metadata), f"{options.out}: detections"
    )
    return trained, found, failure


def document_of(out: Path, trained: TrainedNetwork, found: list[VideoDetections]) -> dict[str, Any]:
    """What --json prints."""
    videos = {
        video.key: {
            **video.stated,
            "duration": video.duration,
            "reason": video.reason,
            "detections": list(video.detections),
        }
        for video in found
    }
    return {"out": out, "checkpoint": trained.source, "classes": trained.classes, "videos": videos}


def print_written(
    options: PredictOptions,
    trained: TrainedNetwork,
    found: list[VideoDetections],
    output: Output,
    *,
    failure: str | None,
) -> bool:
    """Write the formats that were asked for and print what is where; whether all could be written.

    failure: why nothing could be written.
    """
    formats, complete = write_formats(options.out, found, () if failure else options.formats, output)
    if failure is None:
        others = "".join(f", {FORMATS[name].title}" for name in formats)
        output.say(f"written to {options.out}: detections.json, detections.csv, subtitles (.srt){others}")
    output.document({**document_of(options.out, trained, found), "formats": formats})
    return complete


EPILOG = """
\b
Examples:
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3 --format elan --format events-per-hour
  leantad predict recordings/ "more/*.mkv" --checkpoint runs/demo --out found --classes jump,run --top 20
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--checkpoint", type=PATH, required=True, help="Run (its best), checkpoint or model file.")
@click.option("--out", type=PATH, default=Path("predictions"), help="Folder to write.")
@click.option("--min-score", type=click.FloatRange(0), default=0.0, help="Leave out what scores less.")
@click.option("--auto-threshold", is_flag=True, help="Each class from its score of best F1 in validation on.")
@click.option("--top", type=click.IntRange(1), help="Keep the best N of each video.", metavar="N")
@click.option("--classes", multiple=True, help="Keep these classes only; repeatable.", metavar="A,B")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--format", "formats", type=click.Choice(CHOICES), multiple=True, help="Write this, too; repeatable."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@force_option
@output_options
@local_rank_option
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    """Find actions in VIDEO files, in folders of them (at any depth), or in what globs match; or, with a
    detector that was trained on features, in the videos of feature files (.h5).

    Writes detections.json (ActivityNet's format), detections.csv and one .srt of subtitles per video, and
    with --format the files of labelling tools, YouTube chapters, or a table of events per hour. Scores and
    times are those that `leantad eval` would give for the packed file; the options only leave some out.
    A file that cannot be used is named on stderr, the others go on, and the exit code is 1; where none can be
    used, it is 2, and nothing is written. Processes that deepspeed or torchrun started share the files.
    """
    from train.distributed import shared_work

    options = PredictOptions(**values)
    files = find_inputs(options.videos)
    with writing_folder(options.out, "predict") if launched_as_first() else nullcontext() as last:
        check_outputs(options.out, list(files), force=options.force)
        check_formats(options.out, list(files), options.formats, force=options.force)
        with shared_work() as writes:
            output = output if writes else Output(quiet=True)
            remark_on_lock(output, options.out, last)
            if others := left_out(options.videos):
                output.remark(others)
            with output.others_on_stderr():
                trained, found, failure = predict_and_write(options, files, output, writes=writes)
        if not writes:
            return  # rank 0 has the detections of all
        output.say(format_detections(found))
        complete = print_written(options, trained, found, output, failure=failure)
    if failure is not None:
        output.error(failure)
        ctx.exit(2)
    ctx.exit(0 if complete and all(video.reason is None for video in found) else 1)


if __name__ == "__main__":
    main()
