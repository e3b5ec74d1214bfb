"""Make HTML pages that show detections beside the video: one per video, and an index sorted by error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # `python tools/view.py` works too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.annotations import Video
from pipeline.lock import writing_folder
from pipeline.text import counted, first_names
from tools.viewer.build import View, document_of, make_view
from tools.viewer.media import VideoFinder
from train.cli import PATH, Command, Output, check_new, force_option, output_options, trust_option
from train.detections import DetectionsFile, read_detections
from train.evaluation.coverage import check_overlap
from train.evaluation.files import read_ground_truth, rename_videos
from train.evaluation.proposals import are_proposals, without_classes
from train.evaluation.video_names import Names
from train.trust import foreign_files

EMBED_LIMIT_MIB = 64.0

EXAMPLES = """
\b
Examples:
  leantad view detections.json --videos my_videos --out view
  leantad view runs/demo/detections.json --ground-truth data/demo/dataset.json --embed
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("detections", type=PATH)
@click.option("--ground-truth", type=PATH, help="Annotations (.json, .csv) or dataset.json to compare with.")
@click.option("--subset", help="Subset of the ground truth. Default: the detections' own, or the only one.")
@click.option(
    "--videos",
    type=PATH,
    multiple=True,
    help="Video file, folder of them, or packed data set; repeatable. "
    "Default: the ground truth's data set, if it is one, and the files that predict read.",
)
@click.option("--embed", is_flag=True, help="Put the videos into the pages, so that one file is enough.")
@click.option(
    "--embed-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=EMBED_LIMIT_MIB,
    help="Largest video to embed, MiB.",
)
@click.option("--out", type=PATH, default=Path("view"), help="Folder for the pages.")
@force_option
@trust_option
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
    trust: bool,
    output: Output,
) -> None:
    """Show DETECTIONS (ActivityNet's JSON, or a folder that predict or a run wrote) beside their videos: a
    page per video, and an index by error.

    Linked videos are played from where they lie; those of a packed data set are copied to OUT/media. With a
    ground truth, the error of a video is `missed + false`: 1 - mean best tIoU of its true actions, plus the
    share of the shown score that is wrong at tIoU 0.5. A video that cannot be shown makes the exit code 1.
    """
    with writing_folder(out, "view"):
        check_new(out, force=force)
        shown = read_input(detections, ground_truth, subset)
        if shown.remark:
            output.remark(shown.remark)
        files = predicted_files(shown.detections, detections, output, trust=trust)
        finder = find_videos(videos, ground_truth, shown, files)
        view = make_view(
            shown.detections.results,
            shown.ground_truth,
            out,
            title=_title(detections),
            finder=finder,
            durations=shown.detections.durations,
            titles=shown.detections.titles,
            rejected=_rejected(shown, finder),
            embed_limit=embed_limit if embed else None,
            progress=partial(output.progress, title="pages", unit="video"),
        )
    print_result(view, output)
    ctx.exit(1 if view.problems else 0)


@dataclass(frozen=True)
class ViewInput:
    """Detections, ground truth if there is one, and a remark on names of videos that differ.

    names: what else each video is called, by key; the keys are those of the ground truth.
    """

    detections: DetectionsFile
    ground_truth: dict[str, Video] | None
    names: Names
    remark: str


def read_input(detections: Path, ground_truth: Path | None, subset: str | None) -> ViewInput:
    """Read the detections, and name their videos as the ground truth does; ValueError if they share none.

    Where they are proposals, true actions lose their classes, too.
    """
    shown = read_detections(detections)
    if ground_truth is None:
        return ViewInput(shown, None, shown.names, "")
    annotated = read_ground_truth(ground_truth, subset, hint=shown.subset)
    shown, remark = rename_videos(shown, annotated)
    check_overlap(annotated, shown.results)
    names = {key: [*own, *annotated.names.get(key, ())] for key, own in shown.names.items()}
    videos = without_classes(annotated.videos) if are_proposals(shown.results) else annotated.videos
    return ViewInput(shown, videos, names, remark)


def find_videos(
    videos: tuple[Path, ...], ground_truth: Path | None, shown: ViewInput, files: Mapping[str, str]
) -> VideoFinder:
    """Search `videos`, or else the ground truth's packed data set; and `files`, {key: path}."""
    if not videos and ground_truth is not None and _is_packed(ground_truth):
        videos = (ground_truth,)
    finder = VideoFinder.open(videos)
    finder.add_predicted(files)
    finder.match_names(shown.names)
    return finder


def predicted_files(
    shown: DetectionsFile, detections: Path, output: Output, *, trust: bool
) -> dict[str, str]:
    """The files that predict read; where somebody else wrote the result, only those that came with it."""
    if shown.is_own or trust:
        return shown.located_files
    folder = detections if detections.is_dir() else detections.parent
    foreign = foreign_files(shown.files.values(), folder)
    if foreign:
        output.remark(
            f"{detections}: you did not write it here, so files elsewhere that it names are left out "
            f"({first_names(foreign)}); name their folder with --videos, or --trust it"
        )
    return {key: file for key, file in shown.files.items() if file not in foreign}


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


def _rejected(shown: ViewInput, finder: VideoFinder) -> dict[str, str]:
    """Why videos were not read: at packing, or when detections were made."""
    results = shown.detections.results
    unpacked = {key: reason for key, reason in finder.rejected().items() if not results[key]}
    return unpacked | shown.detections.rejected


if __name__ == "__main__":
    main()
