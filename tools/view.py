"""Make HTML pages that show detections beside the video: one per video, and an index sorted by error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.text import counted

if __name__ == "__main__":  # `python tools/view.py` works too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from tools.viewer.build import document_of, make_view
from tools.viewer.media import Library
from train.cli import Command, Output, check_new, force_option, output_options
from train.detections import read_detections
from train.evaluation.coverage import check_overlap
from train.evaluation.files import read_ground_truth, rename_videos

EMBED_LIMIT_MIB = 64.0


EXAMPLES = """
\b
Examples:
  leantad view detections.json --videos my_videos --out view
  leantad view runs/demo/detections.json --ground-truth data/demo/dataset.json --embed
"""
FILE = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("detections", type=FILE)
@click.option("--ground-truth", type=FILE, help="Annotations (.json, .csv) or dataset.json to compare with.")
@click.option("--subset", help="Subset of the ground truth. Default: the detections' own, or the only one.")
@click.option(
    "--videos",
    type=FILE,
    multiple=True,
    help="Video file, folder of them, or packed data set; repeatable. "
    "Default: the ground truth's data set, if it is one, and the files that predict read.",
)
@click.option("--embed", is_flag=True, help="Put the videos into the pages, so that one file is enough.")
@click.option(
    "--embed-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=EMBED_LIMIT_MIB,
    show_default=True,
    help="Largest video to embed, MiB.",
)
@click.option("--out", type=FILE, default=Path("view"), show_default=True, help="Folder for the pages.")
@force_option
@output_options
@click.pass_context
def main(
    ctx: click.Context,
    detections: Path,
    ground_truth: Path | None,
    subset: str | None,
    videos: tuple[Path, ...],
    embed: bool,
    embed_limit: float,
    out: Path,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show DETECTIONS (ActivityNet's JSON, or a folder that predict or a run wrote) beside their videos: a
    page per video, and an index by error.

    Linked videos are played from where they lie; those of a packed data set are copied to OUT/media. With a
    ground truth, the error of a video is `missed + false`: 1 - mean best tIoU of its true actions, plus the
    share of the shown score that is wrong at tIoU 0.5. A video that cannot be shown makes the exit code 1.
    """
    output = Output(quiet, as_json)
    check_new(out, force=force)
    shown = read_detections(detections)
    truth, called = None, shown.names
    if ground_truth is not None:
        truth = read_ground_truth(ground_truth, subset, hint=shown.subset)
        shown, line = rename_videos(shown, truth)
        check_overlap(truth, shown.results)
        if line:
            output.remark(line)
        called = {key: [*names, *truth.names.get(key, ())] for key, names in shown.names.items()}
    if not videos and ground_truth is not None and _is_packed(ground_truth):
        videos = (ground_truth,)
    library = Library.open(videos)
    library.add_predicted(shown.files)
    library.expect(called)
    rejected = {key: reason for key, reason in library.rejected().items() if not shown.results[key]}
    view = make_view(
        shown.results,
        truth.videos if truth else None,
        out,
        title=_title(detections),
        library=library,
        durations=shown.durations,
        rejected=rejected | shown.rejected,
        embed_limit=embed_limit if embed else None,
        progress=_bar(output),
    )
    for line in view.remarks:
        output.remark(line)
    for line in view.problems:
        click.echo(f"error: {line}", err=True)
    output.say(f"{counted(len(view.order), 'page')}: open {view.index}")
    output.document(document_of(view))
    ctx.exit(1 if view.problems else 0)


def _is_packed(location: Path) -> bool:
    return location.name == "dataset.json" or (location / "dataset.json").is_file()


def _title(detections: Path) -> str:
    """The name of the folder that they lie in."""
    folder = detections.resolve() if detections.is_dir() else detections.resolve().parent
    return folder.name or detections.stem


def _bar(output: Output) -> Any:
    from tqdm import tqdm

    return lambda order: tqdm(order, desc="pages", unit="video", disable=output.no_bar)


if __name__ == "__main__":
    main()
