"""`leantad eval`: detections and mAP from a checkpoint, from raw outputs, or from a detections.json alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, train/ comes first on sys.path, where its files would be top-level modules: the root
    # belongs.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from pipeline.lock import writing_file
from train.cli import (
    PATH,
    Command,
    Output,
    check_new,
    check_new_file,
    exit_with,
    force_option,
    launched_as_first,
    local_rank_option,
    output_options,
    trust_option,
    written,
)
from train.detections import DetectionsFile, read_detections, write_detections
from train.evaluation.average_precision import PROTOCOLS, parse_tiou, protocol_of
from train.evaluation.blocked import read_blocked, without_blocked
from train.evaluation.coverage import check_overlap, coverage_lines, unread_videos
from train.evaluation.evaluate import evaluate
from train.evaluation.external_scores import read_external_scores
from train.evaluation.files import GroundTruth, check_ground_truth, read_ground_truth, rename_videos
from train.evaluation.proposals import ONE_CLASS, are_proposals, without_classes
from train.evaluation.sources import data_overrides, detect_with_checkpoint, postprocess_raw
from train.evaluation.tables import format_metrics


@dataclass(frozen=True)
class EvalOptions:
    """The options of the command, but for --quiet and --json."""

    checkpoint: Path | None
    from_raw: tuple[Path, ...]  # several are fused
    detections: Path | DetectionsFile | None  # a file, or what is in one
    shards: str | None
    ground_truth: Path | None
    subset: str | None
    blocked: Path | None
    protocol: str | None  # None: what the detections state
    tiou: str | None
    drop_duplicates: bool
    diagnose: bool
    resamples: int | None
    external_scores: Path | None
    raw: Path | None
    overrides: tuple[str, ...]
    out: Path | None  # None: detections go nowhere
    force: bool
    trust: bool


@dataclass(frozen=True)
class EvaluationInput:
    """Detections and what they are compared with; None where there is no ground truth."""

    detections: DetectionsFile
    ground_truth: GroundTruth | None


def check_options(options: EvalOptions) -> None:
    """ValueError unless the options fit together, the thresholds can be read and no result is overwritten.

    Checked before the work: a typing error must not cost a run of the network.
    """
    sources = {
        "--checkpoint": options.checkpoint,
        "--from-raw": options.from_raw,
        "--detections": options.detections,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'no source'}, want one of {', '.join(sources)}")
    if options.detections and not (options.ground_truth or options.shards):
        raise ValueError(
            "--detections: want --ground-truth too (annotations .json or .csv, or a dataset.json)"
        )
    network_only = {
        "--raw": options.raw,
        "--set": options.overrides,
        "--external-scores": options.external_scores,
        "--out": options.out,
    }
    for name, value in network_only.items():
        if value and options.detections:
            raise ValueError(f"{name}: has no meaning with --detections, which are final")
    if options.raw and not options.checkpoint:
        raise ValueError("--raw: keeps what the model says, want --checkpoint with it")
    if options.tiou:
        parse_tiou(options.tiou)
    if options.blocked:
        read_blocked(options.blocked)
        if not (options.checkpoint or options.ground_truth or options.shards):
            raise ValueError("--blocked: nothing to compare with, want --ground-truth or --shards too")
    for path in (options.out, options.raw):
        if path is not None:
            check_new_file(path, force=options.force)
    if options.ground_truth and not options.detections:
        check_ground_truth(options.ground_truth, options.subset)
    check_origin(options)


def check_origin(options: EvalOptions) -> None:
    """ValueError for a data set that only the checkpoint of a stranger names, see train/trust.py.

    Of several processes the first one checks, before it lets the others begin: the machines of those may
    have other home folders, without the key of this one.
    """
    if not options.checkpoint or options.checkpoint.is_file():  # a model file names no data set
        return
    if options.trust or not launched_as_first():
        return
    from train.checkpoint import settings_file
    from train.settings import check_trust

    given = [*options.overrides, *data_overrides(options.shards, None)]
    check_trust(settings_file(options.checkpoint), given, only=["data.shards"], option="--shards DATA")


def load_input(options: EvalOptions, output: Output) -> EvaluationInput:
    """The detections, computed or read, and the ground truth, if any."""
    scores = read_external_scores(options.external_scores) if options.external_scores else None
    ground_truth = None
    if options.checkpoint:
        with output.others_on_stderr():
            detections, ground_truth = detect_with_checkpoint(
                options.checkpoint,
                overrides=[*options.overrides, *data_overrides(options.shards, options.subset)],
                external_scores=scores,
                raw=options.raw,
                output=output,
            )
    elif options.from_raw:
        detections = postprocess_raw(options.from_raw, overrides=options.overrides, external_scores=scores)
    else:
        assert options.detections is not None
        given = options.detections
        detections = given if isinstance(given, DetectionsFile) else read_detections(given)
    location = options.ground_truth or (None if options.checkpoint else options.shards)
    if location is not None:
        ground_truth = read_ground_truth(location, options.subset, hint=detections.subset)
        metadata = {**detections.metadata, "subset": ground_truth.subset}
        detections = DetectionsFile(detections.results, metadata)
    return EvaluationInput(detections, ground_truth)


@contextmanager
def held_output(options: EvalOptions) -> Iterator[None]:
    """Keep other evaluations from writing the same detections meanwhile."""
    if options.out is None or not launched_as_first():
        yield
        return
    with writing_file(options.out, "eval"):
        check_new(options.out, force=options.force)
        yield


def write_result(options: EvalOptions, detections: DetectionsFile) -> str | None:
    """Write the detections where they go; why they could not be written, if so."""
    out = options.out
    if out is None:
        return None
    return written(
        lambda: write_detections(out, detections.results, metadata=detections.metadata), f"{out}: detections"
    )


def metrics_of(
    detections: DetectionsFile, ground_truth: GroundTruth, options: EvalOptions
) -> tuple[dict[str, Any], list[str]]:
    """The metrics, and what a reader of them should know, a line each; ValueError if no video is in both."""
    blocked_line = ""
    if options.blocked:
        blocked = read_blocked(options.blocked)
        detections, ground_truth, blocked_line = without_blocked(
            detections, ground_truth, blocked, where=options.blocked
        )
    detections, names_line = rename_videos(detections, ground_truth)
    check_overlap(ground_truth, detections.results)
    proposals_line = ""
    if are_proposals(detections.results):
        ground_truth = replace(ground_truth, videos=without_classes(ground_truth.videos))
        proposals_line = ONE_CLASS
    stated = options.protocol or protocol_of(detections.metadata.get("protocol"))
    tiou, protocol = parse_tiou(options.tiou or stated)
    metrics = evaluate(
        ground_truth.videos,
        detections.results,
        tiou=tiou,
        protocol=protocol,
        drop_duplicates=options.drop_duplicates,
        diagnosis=options.diagnose,
        bins=stated,
        resamples=options.resamples or 0,
    )
    lines = [line for line in (blocked_line, names_line, proposals_line) if line]
    lines += [*coverage_lines(ground_truth, detections)]
    if options.drop_duplicates:
        lines.append(f"{metrics['num_truth']} true actions after --drop-duplicates")
    return metrics, lines


def print_metrics(
    detections: DetectionsFile, ground_truth: GroundTruth, options: EvalOptions, output: Output
) -> dict[str, Any]:
    """Print what is compared and the tables; returns the metrics."""
    metrics, lines = metrics_of(detections, ground_truth, options)
    for line in [*lines, format_metrics(metrics)]:
        output.say(line)
    return metrics


def evaluate_options(options: EvalOptions, output: Output) -> dict[str, Any]:
    """The metrics, for Python: remarks go to stderr, detections into `out` if there is one.

    Without a ground truth the metrics are empty; then ValueError, before the work, unless there is an `out`.
    """
    check_options(options)
    if options.from_raw and not (options.ground_truth or options.shards or options.out):
        raise ValueError("from_raw: nothing to compare with, want ground_truth or shards, or an out to write")
    with held_output(options):
        loaded = load_input(options, output)
        failure = write_result(options, loaded.detections)
    detections, ground_truth = loaded.detections, loaded.ground_truth
    if failure is not None:
        output.error(failure)
    for line in unread_videos(detections):
        output.error(line)
    if ground_truth is None:
        return {}
    metrics, lines = metrics_of(detections, ground_truth, options)
    for line in lines:
        output.remark(line)
    return metrics


def sharing(options: EvalOptions) -> AbstractContextManager[bool]:
    """Inside, a launcher's processes share the work of a network; yields whether this one writes."""
    if options.checkpoint is None:  # no work to share, and no torch to import
        return nullcontext(launched_as_first())
    from train.distributed import shared_work

    return shared_work()


EXAMPLES = """
\b
Examples:
  leantad eval --checkpoint runs/demo --shards data/demo --raw raw.h5
  leantad eval --from-raw raw.h5 --shards data/demo --set post.sigma=0.5
  leantad eval --from-raw one.h5 --from-raw two.h5 --shards data/demo
  leantad eval --detections detections.json --ground-truth truth.json --tiou 0.1:0.1:0.9
  leantad eval --detections detections.json --ground-truth truth.json --diagnose --bootstrap 1000
  leantad eval --checkpoint runs/demo --out demo.json --json > metrics.json
  deepspeed --num_gpus 4 train/eval.py --checkpoint runs/demo
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.option("--checkpoint", type=PATH, help="Run folder (its best), checkpoint folder or model file.")
@click.option(
    "--from-raw",
    type=PATH,
    multiple=True,
    help="HDF5 file of --raw: post-process again, without the model; repeatable: fused.",
)
@click.option("--detections", type=PATH, help="Finished detections in ActivityNet's format: mAP only.")
@click.option("--shards", help="Data set: folder, tars or URL. Default: the checkpoint's own.")
@click.option("--ground-truth", type=PATH, help="Annotations (.json, .csv) or dataset.json.")
@click.option("--subset", help="Subset to compare with. Default: the detections' own, or the only one.")
@click.option("--blocked", type=PATH, help="JSON list of videos left out of the comparison (ActivityNet's).")
@click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    help="Thresholds of mAP. Default: those of the detections' run (run.protocol), else activitynet.",
)
@click.option("--tiou", help="Thresholds instead of a protocol: start:step:end or a,b,c.")
@click.option("--drop-duplicates", is_flag=True, help="Leave out repeated and empty true actions.")
@click.option("--diagnose", is_flag=True, help="Kinds of errors, what each costs, which actions are missed.")
@click.option(
    "--bootstrap", "resamples", type=click.IntRange(2), metavar="N", help="95 % intervals from N resamples."
)
@click.option("--external-scores", type=PATH, help="Video-level class scores: .json, .npy or .csv.")
@click.option("--raw", type=PATH, help="Keep raw detector outputs in this HDF5 file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--out", type=PATH, help="Where detections go.  [default: detections.json]")
@force_option
@trust_option
@output_options
@local_rank_option
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    """Detect actions and measure mAP: from a checkpoint, from raw outputs, or from detections alone.

    Detections and ground truth may spell a video in different ways (with an ending, a folder, `v_` in front).
    Videos that could not be read are named, stay in the denominator of mAP, and make the exit code 1. Several
    processes that deepspeed or torchrun started share the videos of a --checkpoint.
    """
    options = EvalOptions(**values)
    if not options.detections:
        options = replace(options, out=options.out or Path("detections.json"))
    check_options(options)
    with held_output(options), sharing(options) as writes:
        output = output if writes else Output(quiet=True)
        loaded = load_input(options, output) if writes or options.checkpoint else None
        failure = write_result(options, loaded.detections) if loaded is not None and writes else None
    if loaded is None or not writes:
        return  # rank 0 has the results of all
    if failure is None and not options.detections:
        output.say(f"detections: {options.out}")
    if loaded.ground_truth is None:
        output.say("no --ground-truth or --shards: nothing to compare with, no mAP")
        output.document({"detections": options.out})
    else:
        output.document(print_metrics(loaded.detections, loaded.ground_truth, options, output))
    if failure is not None:
        output.error(failure)
        ctx.exit(2)
    exit_with(ctx, unread_videos(loaded.detections))


if __name__ == "__main__":
    main()
