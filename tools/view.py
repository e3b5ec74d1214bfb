"""Make HTML pages that show detections beside the video: one per video, and an index sorted by error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # `python tools/view.py` works too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.annotations import Video
from pipeline.text import counted
from tools.viewer.build import View, document_of, make_view
from tools.viewer.media import VideoFinder
from train.cli import Command, Output, check_new, force_option, output_options
from train.detections import Results, read_detections
from train.evaluation.coverage import check_overlap
from train.evaluation.files import names_in, read_truth, renamed, table_in
from train.evaluation.video_names import Names

EMBED_LIMIT_MIB = 64.0
LONGEST_SECONDS = 1e9

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
    shown = read_input(detections, ground_truth, subset)
    if shown.remark:
        output.remark(shown.remark)
    finder = find_videos(videos, ground_truth, shown)
    view = make_view(
        shown.results,
        shown.ground_truth,
        out,
        title=_title(detections),
        finder=finder,
        durations=_durations(table_in(shown.meta, "videos")),
        rejected=_rejected(shown, finder),
        embed_limit=embed_limit if embed else None,
        progress=_bar(output),
    )
    print_result(view, output)
    ctx.exit(1 if view.problems else 0)


@dataclass(frozen=True)
class ViewInput:
    """Detections with their "external_data", ground truth if there is one, and a remark on names of videos.

    names: what else each video is called, by key; the keys are those of the ground truth.
    """

    results: Results
    meta: dict[str, Any]
    ground_truth: dict[str, Video] | None
    names: Names
    remark: str


def read_input(detections: Path, ground_truth: Path | None, subset: str | None) -> ViewInput:
    """Read the detections, and name their videos as the ground truth does; ValueError if they share none."""
    results, meta = read_detections(detections)
    if ground_truth is None:
        return ViewInput(results, meta, None, names_in(results, meta), "")
    annotated = read_truth(ground_truth, subset, hint=meta.get("subset"))
    results, meta, remark = renamed(results, meta, annotated)
    check_overlap(annotated, results)
    names = {key: [*own, *annotated.names.get(key, ())] for key, own in names_in(results, meta).items()}
    return ViewInput(results, meta, annotated.videos, names, remark)


def find_videos(videos: tuple[Path, ...], ground_truth: Path | None, shown: ViewInput) -> VideoFinder:
    """Search `videos`, or else the ground truth's packed data set; and the files that predict read."""
    if not videos and ground_truth is not None and _is_packed(ground_truth):
        videos = (ground_truth,)
    finder = VideoFinder.open(videos)
    finder.add_predicted(shown.meta.get("videos"))
    finder.match_names(shown.names)
    return finder


def print_result(view: View, output: Output) -> None:
    """Print remarks, videos that could not be shown, and where the pages are."""
    for line in view.remarks:
        output.remark(line)
    for line in view.problems:
        output.error(line)
    output.say(f"{counted(len(view.order), 'page')}: open {view.index}")
    output.document(document_of(view))


def _is_packed(location: Path) -> bool:
    """Whether it is a packed data set."""
    return location.name == "dataset.json" or (location / "dataset.json").is_file()


def _title(detections: Path) -> str:
    """The name of the folder that they lie in."""
    folder = detections.resolve() if detections.is_dir() else detections.resolve().parent
    return folder.name or detections.stem


def _durations(videos: dict[str, Any]) -> dict[str, float]:
    """Seconds of each video as `leantad predict` writes them under external_data.videos."""
    stated = {key: entry.get("duration") for key, entry in videos.items() if isinstance(entry, dict)}
    return {
        key: float(value)
        for key, value in stated.items()
        if isinstance(value, (int, float)) and 0 < value < LONGEST_SECONDS
    }


def _rejected(shown: ViewInput, finder: VideoFinder) -> dict[str, str]:
    """Why videos were not read: at packing, or as predict writes it under external_data.rejected."""
    unpacked = {key: reason for key, reason in finder.rejected().items() if not shown.results[key]}
    unread = table_in(shown.meta, "rejected")
    return unpacked | {key: " ".join(str(reason).split()) for key, reason in unread.items()}


def _bar(output: Output) -> Callable[[Iterable[int]], Iterable[int]]:
    """A progress bar around an iterable of pages."""
    from tqdm import tqdm

    return lambda positions: tqdm(positions, desc="pages", unit="video", disable=output.no_bar)


if __name__ == "__main__":
    main()
