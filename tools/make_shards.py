"""Checks videos against their annotations and packs them into WebDataset shards that training reads."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.text import suggestion

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import click
from click.core import ParameterSource
from tqdm import tqdm

from pipeline.annotations import Video, read_annotations, read_classes
from pipeline.packing.encoder import ENCODERS
from pipeline.packing.journal import Journal
from pipeline.packing.pack_dataset import PackingPlan, load_complete_dataset, pack, remove_outputs
from pipeline.packing.pack_video import Job, PackResult, check_video
from pipeline.packing.rates import exact_rate
from pipeline.packing.shard_writer import unique_keys
from pipeline.packing.transcode import EncodingSpec
from pipeline.packing.verify import verify as verify_shards
from pipeline.packing.video_folder import VideoFolder
from pipeline.packing.workers import run_jobs
from tools.dataset.packing_report import summary_of, text_of
from train.cli import Command, Output, output_options

FORM_OPTIONS = ("codec", "fps", "short_side", "gop", "upscale")


def classes_of(videos: dict[str, Video], path: Path | None) -> tuple[str, ...]:
    """The class names: all labels, or those of the file, which must then cover all labels."""
    labels = {action.label: key for key, video in videos.items() for action in video.actions}
    if path is None:
        return tuple(sorted(labels))
    classes = read_classes(path)
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise ValueError(
            f"{labels[unknown[0]]}: class {unknown[0]!r} is not in {path}; {suggestion(unknown[0], classes)}"
        )
    return classes


def plan_of(
    videos: Path,
    annotations: Path,
    *,
    subsets: tuple[str, ...],
    classes: Path | None,
    form: EncodingSpec | None,
    shard_size: int,
) -> PackingPlan:
    """Read what is to be packed; nothing is decoded yet."""
    annotated = read_annotations(annotations)
    names = classes_of(annotated, classes)  # of all subsets, so that parts packed apart agree
    keys = unique_keys(annotated)
    for subset in subsets:
        read_annotations(annotations, subset=subset)  # refuses a subset that is not there
    folder = VideoFolder(videos)
    found = {name: folder.find(name) for name in annotated}
    refuse_shared_files(annotations, {name: file for name, (file, _) in found.items()})
    jobs = [
        Job(keys[name], name, video, folder.folder, *found[name], form)
        for name, video in annotated.items()
        if not subsets or video.subset in subsets
    ]
    jobs.sort(key=lambda job: (job.video.subset, job.key))
    settings = settings_of(form, shard_size, subsets)
    return PackingPlan(tuple(jobs), names, shard_size, settings, folder.unnamed(annotated))


def refuse_shared_files(annotations: Path, files: dict[str, str | None]) -> None:
    """ValueError when two names mean one file: it would be two videos, each with a part of the actions."""
    names: dict[str, str] = {}
    for name, file in files.items():
        if file is not None and names.setdefault(file, name) != name:
            raise ValueError(
                f"{annotations}: {names[file]!r} and {name!r} are both the file {file!r}; want one name of it"
            )


def settings_of(form: EncodingSpec | None, shard_size: int, subsets: tuple[str, ...]) -> dict:
    """What dataset.json says about how it was made."""
    try:
        leantad = version("leantad")
    except PackageNotFoundError:
        leantad = "checkout"
    versions = {"leantad": leantad, "av": av.__version__}
    how = {"copy": True} if form is None else {"copy": False, **vars(form), "fps": float(form.fps)}
    return {**how, "shard_size": shard_size, "subsets": sorted(subsets), "versions": versions}


def check(plan: PackingPlan, *, workers: int, progress: Callable[[Iterable], Iterable]) -> list[PackResult]:
    """Decode every video and fit its actions; nothing stays on disk."""
    with tempfile.TemporaryDirectory(prefix="leantad-check-") as folder:
        task = partial(_checked)
        outcomes = list(progress(run_jobs(plan.jobs, Journal(Path(folder)), task, workers=workers)))
    if all(outcome.video.reject for outcome in outcomes):
        video = outcomes[0].video
        raise ValueError(f"none of {len(outcomes)} videos is usable; {video.source}: {video.reject}")
    return outcomes


def _checked(job: Job) -> tuple[PackResult, bytes]:
    return check_video(job), b""


def report(plan: PackingPlan, outcomes: list[PackResult], state: str, output: Output) -> dict:
    """Tell what became of the videos; returns it for --json."""
    document = summary_of(plan, outcomes, state)
    output.say(text_of(document, state))
    return document


def progress_bar(title: str, total: int, output: Output) -> Callable[[Iterable], Iterable]:
    """A bar on a terminal, nothing elsewhere."""
    tqdm.monitor_interval = 0  # its thread would be in the way of forking
    return partial(tqdm, desc=title, total=total, unit="video", disable=output.no_bar)


def form_of(ctx: click.Context, *, copy: bool, **values) -> EncodingSpec | None:
    """The training form that the options ask for; None for --copy."""
    if copy:
        given = [
            name for name in FORM_OPTIONS if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if given:
            raise ValueError(
                f"--copy: keeps the bytes, so --{given[0].replace('_', '-')} has no effect; drop one"
            )
        return None
    if values["short_side"] % 2:
        raise ValueError(f"--short-side: got {values['short_side']}, want an even number of pixels")
    return EncodingSpec(**{**values, "fps": exact_rate(values["fps"]) if values["fps"] else Fraction(0)})


@click.command(
    cls=Command,
    epilog="Example: leantad make-shards videos/ annotations.json --out shards/ --verify",
    interrupted="the same command continues",
)
@click.argument("videos", type=click.Path(path_type=Path))
@click.argument("annotations", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; needed unless --check.")
@click.option("--subset", "subsets", multiple=True, help="Pack this subset only (repeatable).")
@click.option("--classes", type=click.Path(path_type=Path), help="File of the class names, one per line.")
@click.option("--codec", type=click.Choice(list(ENCODERS)), default="vp9", show_default=True)
@click.option("--fps", type=click.FloatRange(0), default=15.0, show_default=True, help="Frames/s; 0 keeps.")
@click.option("--short-side", type=click.IntRange(0), default=128, show_default=True, help="Pixels; 0 keeps.")
@click.option("--gop", type=click.IntRange(1), default=32, show_default=True, help="Frames per key frame.")
@click.option("--upscale", is_flag=True, help="Let --fps and --short-side exceed the source's.")
@click.option("--copy", is_flag=True, help="Keep the bytes of each file instead of re-encoding.")
@click.option("--shard-size", type=click.IntRange(1), default=64, show_default=True, help="Videos per tar.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes [default: one per core].")
@click.option("--force", is_flag=True, help="Remove the data set or unfinished run in --out first.")
@click.option("--verify", is_flag=True, help="Read all back through the training decoder.")
@click.option("--check", "check_only", is_flag=True, help="Only report; write nothing.")
@output_options
@click.pass_context
def main(ctx, videos, annotations, out, subsets, classes, shard_size, workers, **options) -> None:
    """Pack the folder VIDEOS with the file ANNOTATIONS (ActivityNet-style JSON, or CSV) into shards.

    CSV columns: video,start,end,label and, if wanted, subset and duration; times in seconds from the first
    displayed frame. Videos that cannot be used go to rejects.csv with the reason and stay in dataset.json;
    the exit code is then 1. A run that was stopped continues when the same command is given again.
    """
    force, verify, check_only = (options.pop(name) for name in ("force", "verify", "check_only"))
    output = Output(options.pop("quiet"), options.pop("as_json"))
    workers = workers or len(os.sched_getaffinity(0))
    form = form_of(ctx, **options)
    plan = plan_of(videos, annotations, subsets=subsets, classes=classes, form=form, shard_size=shard_size)
    bar = partial(progress_bar, total=len(plan.jobs), output=output)
    if check_only:
        document = report(plan, check(plan, workers=workers, progress=bar("checking")), "usable", output)
        output.document(document)
        sys.exit(1 if document["rejected"] else 0)
    if out is None:
        raise ValueError("--out: missing, want the folder to write (or --check)")
    if force:
        remove_outputs(out)
    outcomes = load_complete_dataset(plan, out)
    if outcomes:
        output.say(f"{out}: already packed")
    document = report(
        plan, outcomes or pack(plan, out, workers=workers, progress=bar("packing")), "packed", output
    )
    if verify:
        document["verified_frames"] = verify_shards(out, progress=bar("verifying"))
        output.say(f"verified: {document['verified_frames']} frames read back")
    output.document({"out": out, **document})
    sys.exit(1 if document["rejected"] else 0)


if __name__ == "__main__":
    main()
