"""Checks videos against their annotations and packs them into WebDataset shards that training reads."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import click
from click.core import ParameterSource
from tqdm import tqdm

from pipeline.annotations import Video, read_annotations, read_classes
from pipeline.limits import Limits, set_limits
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
from pipeline.temporary_folder import temporary_folder
from pipeline.text import counted, suggestion
from tools.dataset.packing_summary import summary_of, text_of
from tools.labels.formats import foreign_title
from train.cli import PATH, Command, Output, exit_with, output_options

LIMITS, POSITIVE = Limits(), click.IntRange(1)
ENCODING_OPTIONS = ("codec", "fps", "short_side", "gop", "upscale")
SIDE_MULTIPLE = 16  # of packed pictures: codecs code whole blocks of it, and GPUs decode those fastest
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps an iteration, for a progress bar


@dataclass(frozen=True)
class PackingOptions:
    """The options of the command, but for --quiet and --json."""

    videos: Path
    annotations: Path
    out: Path | None
    subsets: tuple[str, ...]
    classes: Path | None
    codec: str
    fps: float  # 0 keeps the source's
    short_side: int  # pixels; 0 keeps the source's
    gop: int
    upscale: bool
    copy: bool
    strict: bool  # reject videos of which frames are missing
    shard_size: int
    max_pixels: int
    max_frames: int
    max_bytes: int
    workers: int | None
    force: bool
    verify: bool
    check_only: bool

    @property
    def num_workers(self) -> int:
        """Processes that decode and encode: one per core unless the option says otherwise."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def limits(self) -> Limits:
        """What a video may cost; one that costs more is rejected."""
        return Limits(pixels=self.max_pixels, frames=self.max_frames, bytes=self.max_bytes)

    def encoding_spec(self) -> EncodingSpec | None:
        """What videos are re-encoded to; None for --copy."""
        if self.copy:
            return None
        if self.short_side % 2:
            raise ValueError(f"--short-side: got {self.short_side}, want an even number of pixels")
        fps = exact_rate(self.fps) if self.fps else Fraction(0)
        multiple = 2 if self.short_side % SIDE_MULTIPLE else SIDE_MULTIPLE
        return EncodingSpec(self.codec, fps, self.short_side, self.gop, self.upscale, multiple)


def refuse_encoding_options(options: PackingOptions, is_given: Callable[[str], bool]) -> None:
    """ValueError for --copy with an option that says how to encode: it does not encode."""
    for name in ENCODING_OPTIONS if options.copy else ():
        if is_given(name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"--copy: keeps the bytes, so {option} has no effect; drop one")


def class_names(videos: dict[str, Video], path: Path | None) -> tuple[str, ...]:
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


def read_own_annotations(path: Path) -> dict[str, Video]:
    """read_annotations; the error for a file of a labelling tool names the command that converts it."""
    try:
        return read_annotations(path)
    except ValueError:
        title = foreign_title(path)
        if title is None:
            raise
        raise ValueError(
            f"{path}: is a file of another kind ({title}); leantad convert-annotations "
            f"{shlex.quote(str(path))} --out annotations.csv makes annotations of it"
        ) from None


def make_plan(options: PackingOptions) -> PackingPlan:
    """Read what is to be packed; nothing is decoded yet."""
    spec = options.encoding_spec()
    annotated = read_own_annotations(options.annotations)
    # of all subsets, so that those packed one by one have the same classes
    classes = class_names(annotated, options.classes)
    keys = unique_keys(annotated)
    for subset in options.subsets:
        read_annotations(options.annotations, subset=subset)  # refuses a subset that is not there
    folder = VideoFolder(options.videos)
    found = folder.find_each(annotated)
    refuse_shared_files(options.annotations, {name: file for name, (file, _) in found.items()})
    jobs = [
        Job(keys[name], name, video, folder.folder, *found[name], spec, options.strict)
        for name, video in annotated.items()
        if not options.subsets or video.subset in options.subsets
    ]
    jobs.sort(key=lambda job: (job.video.subset, job.key))
    packing = packing_of(
        spec, options.shard_size, options.subsets, strict=options.strict, limits=options.limits
    )
    return PackingPlan(tuple(jobs), classes, options.shard_size, packing, folder.unnamed(annotated))


def refuse_shared_files(annotations: Path, files: dict[str, str | None]) -> None:
    """ValueError when two names mean one file: it would be two videos, each with some of the actions."""
    names: dict[str, str] = {}
    for name, file in files.items():
        if file is not None and names.setdefault(file, name) != name:
            raise ValueError(
                f"{annotations}: {names[file]!r} and {name!r} are both the file {file!r}; want one name of it"
            )


def packing_of(
    spec: EncodingSpec | None,
    shard_size: int,
    subsets: tuple[str, ...],
    *,
    strict: bool = False,
    limits: Limits = LIMITS,
) -> dict[str, Any]:
    """What dataset.json says about how it was packed. spec None: the bytes were copied.

    Of strict and the limits it says what is not the default.
    """
    try:
        leantad = version("leantad")
    except PackageNotFoundError:
        leantad = "checkout"
    versions = {"leantad": leantad, "av": av.__version__}
    encoding = {"copy": True} if spec is None else {"copy": False, **vars(spec), "fps": float(spec.fps)}
    encoding |= {"strict": True} if strict else {}
    encoding |= {f"max_{name}": most for name, most in limits if most != getattr(LIMITS, name)}
    return {**encoding, "shard_size": shard_size, "subsets": sorted(subsets), "versions": versions}


def check(plan: PackingPlan, *, workers: int, progress: Progress) -> list[PackResult]:
    """Decode every video and fit its actions; nothing stays on disk."""
    with temporary_folder() as folder:
        results = list(progress(run_jobs(plan.jobs, Journal(folder), _check_only, workers=workers)))
    if all(result.video.reject for result in results):
        video = results[0].video
        raise ValueError(f"none of {len(results)} videos is usable; {video.source}: {video.reject}")
    return results


def _check_only(job: Job) -> tuple[PackResult, bytes]:
    return check_video(job), b""


def check_or_pack(options: PackingOptions, plan: PackingPlan, output: Output) -> dict[str, Any]:
    """Do what the options ask for, with progress bars; returns the document of --json."""
    tqdm.monitor_interval = 0  # the thread of progress bars would disturb forking

    def progress(title: str) -> Progress:
        return lambda items: output.progress(items, title, unit="video", total=len(plan.jobs))

    def summarise(results: list[PackResult], state: str) -> dict[str, Any]:
        summary = summary_of(plan, results, state)
        output.say(text_of(summary, state))
        return summary

    set_limits(options.limits)
    if not options.copy and options.short_side % SIDE_MULTIPLE:
        output.remark(
            f"--short-side {options.short_side} is no multiple of {SIDE_MULTIPLE}: GPUs decode H.264 of such "
            "sizes 2 to 3 times as slowly"
        )
    if options.check_only:
        checked = check(plan, workers=options.num_workers, progress=progress("checking"))
        return summarise(checked, "usable")
    if options.out is None:
        raise ValueError("--out: missing, want the folder to write (or --check)")
    if options.force:
        remove_outputs(options.out)
    results = load_complete_dataset(plan, options.out)
    if results:
        output.say(f"{options.out}: already packed")
    else:
        results = pack(plan, options.out, workers=options.num_workers, progress=progress("packing"))
    document = {"out": options.out, **summarise(results, "packed")}
    if options.verify:
        document["verified_frames"] = verify_shards(options.out, progress=progress("verifying"))
        output.say(f"verified: {document['verified_frames']} frames read back")
    return document


def rejected_line(reasons: dict[str, str]) -> list[str]:
    """What exit code 1 stands for, as a line; none if no video was rejected."""
    first = next(iter(reasons), None)
    if first is None:
        return []
    return [f"{counted(len(reasons), 'video')} rejected, such as {first}: {reasons[first]}"]


@click.command(
    cls=Command,
    epilog="Example: leantad make-shards videos/ annotations.json --out shards/ --verify",
    interrupted="the same command continues",
)
@click.argument("videos", type=PATH)
@click.argument("annotations", type=PATH)
@click.option("--out", type=PATH, help="Folder to write; needed unless --check.")
@click.option("--subset", "subsets", multiple=True, help="Pack this subset only (repeatable).")
@click.option("--classes", type=PATH, help="File of the class names, one per line.")
@click.option("--codec", type=click.Choice(list(ENCODERS)), default="vp9")
@click.option(
    "--fps",
    type=click.FloatRange(0),
    default=15.0,
    help="Frames/s; 0 keeps the source's, where uneven that of its motion.",
)
@click.option("--short-side", type=click.IntRange(0), default=128, help="Pixels; 0 keeps.")
@click.option("--gop", type=click.IntRange(1), default=32, help="Frames per key frame.")
@click.option("--upscale", is_flag=True, help="Let --fps and --short-side exceed the source's.")
@click.option("--copy", is_flag=True, help="Keep the bytes of each file instead of re-encoding.")
@click.option("--strict", is_flag=True, help="Reject videos of which frames are missing.")
@click.option("--shard-size", type=click.IntRange(1), default=64, help="Videos per tar.")
@click.option("--max-pixels", type=POSITIVE, default=LIMITS.pixels, help="Pixels of a frame.")
@click.option("--max-frames", type=POSITIVE, default=LIMITS.frames, help="Frames of a video.")
@click.option("--max-bytes", type=POSITIVE, default=LIMITS.bytes, help="Bytes, with --copy.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes [default: one per core].")
@click.option("--force", is_flag=True, help="Remove the data set or unfinished run in --out first.")
@click.option("--verify", is_flag=True, help="Read all back through the training decoder.")
@click.option("--check", "check_only", is_flag=True, help="Only report; write nothing.")
@output_options
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    """Pack the folder VIDEOS with the file ANNOTATIONS (ActivityNet-style JSON, or CSV) into shards.

    CSV columns: video,start,end,label and, if wanted, subset and duration; times in seconds as a player shows
    them. Of a video that begins or breaks off within what cannot be decoded, the rest is kept, with a remark
    (--strict rejects it); one that is damaged in between is rejected. Videos that cannot be used go to
    rejects.csv with the reason and stay in dataset.json; the exit code is then 1. A run that was stopped
    continues when the same command is given again.
    """
    options = PackingOptions(**values)
    refuse_encoding_options(
        options, lambda name: ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )
    document = check_or_pack(options, make_plan(options), output)
    output.document(document)
    exit_with(ctx, rejected_line(document["rejected"]))


if __name__ == "__main__":
    main()
