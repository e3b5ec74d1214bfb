"""`leantad compare`: mAP of two sets of detections of the same videos, and whether the difference is real."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import columns, shown
from train.cli import PATH, Command, Output, document_options, exit_with, plain
from train.detections import DetectionsFile, read_detections
from train.evaluation.average_precision import PROTOCOLS, parse_tiou, protocol_of
from train.evaluation.coverage import check_overlap, coverage_lines, unread_videos
from train.evaluation.files import GroundTruth, read_ground_truth, rename_videos
from train.evaluation.proposals import ONE_CLASS, are_proposals, without_classes

if TYPE_CHECKING:
    from train.evaluation.matching import Matches

HELP = """Compare two result files: mAP of both, the difference, and its paired interval.

A and B are detections in ActivityNet's format (or folders of runs), of the same videos. Every resample draws
the videos anew, with replacement, the same ones for both; differences are A minus B. A star marks an interval
without zero. Videos that could not be read are named, count as empty, and make the exit code 1. Proposals
without classes (post.proposals_only) are compared with each other; all true actions are one class then.
"""
EXAMPLES = """
\b
Examples:
  leantad compare runs/a runs/b --ground-truth data/demo
  leantad compare a.json b.json --ground-truth thumos_gt.json --subset test --tiou 0.1:0.1:0.9 --json
"""
MAX_CLASSES = 20  # of more classes, those with the largest differences are shown


@dataclass(frozen=True)
class CompareOptions:
    """The options of the command, but for those that all commands have."""

    a: Path
    b: Path
    ground_truth: str
    subset: str | None
    protocol: str | None  # None: what A states
    tiou: str | None
    drop_duplicates: bool
    resamples: int
    seed: int


def signed(bounds: Sequence[float | None]) -> str:
    """An interval of a difference in percent."""
    low, high = bounds
    return "-" if low is None or high is None else f"{100 * low:+.2f} .. {100 * high:+.2f}"


def cells(title: str, row: Mapping[str, Any]) -> list[str]:
    """One row of the tables."""
    from train.evaluation.bootstrap import excludes_zero

    figures = [f"{100 * row['a']:.2f}", f"{100 * row['b']:.2f}", f"{100 * row['difference']:+.2f}"]
    star = "*" if excludes_zero(row["interval"]) else ""
    better = "-" if row["a_better"] is None else f"{100 * row['a_better']:.0f}"
    return [title, *figures, signed(row["interval"]), star, better]


def tables(result: Mapping[str, Any]) -> str:
    """Both tables as text: by tIoU, and by class with the largest differences first."""
    from train.evaluation.bootstrap import too_few

    head = ["A", "B", "A - B", f"{100 * result['level']:g} % interval", "", "A better in %"]
    rows = [["mAP % at tIoU", *head], *(cells(row["tiou"], row) for row in result["rows"])]
    ordered = sorted(result["classes"].items(), key=lambda item: -abs(item[1]["difference"]))
    by_class = [["AP %, all tIoU", *head], *(cells(shown(name), row) for name, row in ordered[:MAX_CLASSES])]
    rest = len(ordered) - MAX_CLASSES
    more = f"\n{rest} classes with smaller differences: see --json" if rest > 0 else ""
    summary = too_few(result["num_videos"]) or (
        f"average mAP: A is better in {100 * result['rows'][0]['a_better']:.1f} % of "
        f"{result['resamples']:,} resamples of the videos (seed {result['seed']})"
    )
    return f"{columns(rows)}\n{summary}\n\n{columns(by_class)}{more}"


@dataclass(frozen=True)
class Side:
    """A or B: matched with the ground truth, what a reader should know of it, videos that were not read."""

    matched: Matches
    lines: list[str]
    problems: list[str]


def side_of(
    ground_truth: GroundTruth, path: Path, detections: DetectionsFile, tiou: Sequence[float], *, dedupe: bool
) -> Side:
    """Match the detections of a file. Errors and lines name it."""
    import numpy as np

    from train.evaluation.matching import evaluation_data, match_detections

    try:
        detections, remark = rename_videos(detections, ground_truth)
        check_overlap(ground_truth, detections.results)
        data = evaluation_data(ground_truth.videos, detections.results, drop_duplicates=dedupe)
        matched = match_detections(data, np.array(tiou))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    kind = ONE_CLASS if are_proposals(detections.results) else ""
    lines = [line for line in (remark, kind, *coverage_lines(ground_truth, detections)) if line]
    problems = [f"{path}: {line}" for line in unread_videos(detections)]
    return Side(matched, [f"{path}: {line}" for line in lines], problems)


def compares_proposals(detections: Mapping[Path, DetectionsFile]) -> bool:
    """Whether the detections are proposals without classes; ValueError if only those of one file are."""
    results = {path: file.results for path, file in detections.items() if any(file.results.values())}
    proposals = [path for path in results if are_proposals(results[path])]
    others = [path for path in results if path not in proposals]
    if proposals and others:
        raise ValueError(
            f"{proposals[0]}: proposals without classes, {others[0]}: detections with classes; want two of a "
            "kind: evaluate both with the same post.proposals_only"
        )
    return bool(proposals)


def read_sides(options: CompareOptions) -> tuple[str, GroundTruth, list[Side]]:
    """The protocol, the ground truth, and A and B matched with it.

    Protocol and subset are those of A unless the options name one; proposals are matched without classes.
    """
    if options.tiou:
        parse_tiou(options.tiou)  # a typing error shows before anything is read
    detections = {path: read_detections(path) for path in (options.a, options.b)}
    hint, stated = detections[options.a].subset, detections[options.a].metadata.get("protocol")
    thresholds, protocol = parse_tiou(options.tiou or options.protocol or protocol_of(stated))
    ground_truth = read_ground_truth(options.ground_truth, options.subset, hint=hint)
    if compares_proposals(detections):
        ground_truth = replace(ground_truth, videos=without_classes(ground_truth.videos))
    sides = [
        side_of(ground_truth, path, detections[path], thresholds, dedupe=options.drop_duplicates)
        for path in (options.a, options.b)
    ]
    return protocol, ground_truth, sides


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--ground-truth", required=True, help="Annotations (.json, .csv), dataset.json or data set.")
@click.option("--subset", help="Subset to compare on. Default: A's own, or the only one.")
@click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    help="Thresholds of mAP. Default: those of A's run (run.protocol), else activitynet.",
)
@click.option("--tiou", help="Thresholds instead of a protocol: start:step:end or a,b,c.")
@click.option("--drop-duplicates", is_flag=True, help="Leave out repeated and empty true actions.")
@click.option("--resamples", type=click.IntRange(2), default=1000)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the resamples.")
@document_options
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    from train.evaluation.bootstrap import compare

    options = CompareOptions(**values)
    protocol, ground_truth, sides = read_sides(options)
    first, second = (side.matched for side in sides)
    document = {
        "a": options.a,
        "b": options.b,
        "ground_truth": options.ground_truth,
        "subset": ground_truth.subset,
        "protocol": protocol,
        "num_videos": len(ground_truth.videos),
        **compare(first, second, resamples=options.resamples, seed=options.seed),
    }
    result = plain(document)
    lines = [f"A: {options.a}", f"B: {options.b}", *(line for side in sides for line in side.lines)]
    if options.drop_duplicates:
        lines.append(f"{len(first.data.true.label)} true actions after --drop-duplicates")
    for line in [*lines, tables(result)]:
        output.say(line)
    output.document(result)
    exit_with(ctx, [line for side in sides for line in side.problems])


if __name__ == "__main__":
    main()
