"""Measures how long evaluation and soft-NMS take on a data set of ActivityNet's size, made up by a seed.

CPU seconds are those of this process on all its threads, so that other work on the machine does not count;
wall seconds stand beside them. Reading and writing JSON is a row of its own: it costs more than the
evaluation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np

from pipeline.annotations import Action, Video
from pipeline.temporary_folder import temporary_folder
from pipeline.text import columns
from tools.benchmarks.common import header
from train.cli import Command, Output, document_options

HELP = """Measure evaluation and soft-NMS at ActivityNet's size, on made-up data.

Evaluation: mAP, recall, diagnosis, and the bootstrap per 100 resamples. Soft-NMS: the proposals of each
video, of one label; then post-processing as `leantad eval` does it, with every class.
"""
EXAMPLES = """
\b
Examples:
  leantad bench-eval
  python tools/bench_eval.py --videos 500 --post-videos 20 --json
"""
Result = TypeVar("Result")

SECONDS = 120.0  # length of every made-up video


@dataclass(frozen=True)
class Sizes:
    """What is made up. Half of a video's detections lie near a true action, half anywhere."""

    videos: int
    classes: int
    detections: int
    proposals: int
    keep: int
    post_videos: int
    seed: int


def make_ground_truth(sizes: Sizes) -> dict[str, Video]:
    """One to three actions of one class in each video, as in ActivityNet (1.5 on average there, 2 here)."""
    rng = np.random.default_rng(sizes.seed)
    ground_truth = {}
    for number in range(sizes.videos):
        ends = np.sort(rng.uniform(0, SECONDS, (int(rng.integers(1, 4)), 2)), axis=1).round(2)
        label = f"class {number % sizes.classes}"
        actions = tuple(Action(float(start), float(end), label) for start, end in ends)
        ground_truth[f"video{number}"] = Video(f"video{number}", "validation", SECONDS, actions)
    return ground_truth


def make_detections(sizes: Sizes, ground_truth: dict[str, Video]) -> dict[str, list[dict[str, Any]]]:
    """Detections of each video, half of them with its label and near its actions."""
    rng = np.random.default_rng(sizes.seed + 1)
    results = {}
    for key, video in ground_truth.items():
        near = sizes.detections // 2
        base = np.array([(action.start, action.end) for action in video.actions])
        segments = rng.uniform(0, SECONDS, (sizes.detections, 2))
        segments[:near] = base[rng.integers(len(base), size=near)] + rng.normal(0, 8, (near, 2))
        segments = np.sort(segments, axis=1).clip(0, SECONDS).round(4).tolist()
        label = [video.actions[0].label] * near
        label += [f"class {i}" for i in rng.integers(sizes.classes, size=sizes.detections - near)]
        scores = np.concatenate([rng.beta(2, 2, near), rng.beta(1, 3, sizes.detections - near)]).tolist()
        results[key] = [
            {"segment": segment, "label": name, "score": score}
            for segment, name, score in zip(segments, label, scores, strict=True)
        ]
    return results


@dataclass(frozen=True)
class Row:
    """What one part took: seconds of this process on all its threads, and by the clock."""

    part: str
    cpu_seconds: float
    wall_seconds: float
    note: str


def timed(rows: list[Row], part: str, function: Callable[[], Result], note: str = "") -> Result:
    """Call the function, add a row for it, return its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    rows.append(Row(part, round(cpu, 3), round(wall, 3), note))
    return result


def bench_evaluation(sizes: Sizes, rows: list[Row]) -> None:
    """JSON there and back, then each measure from the parsed detections on."""
    from train.detections import Results, read_detections, write_detections
    from train.evaluation.average_precision import mean_average_precision, parse_tiou
    from train.evaluation.bootstrap import bootstrap
    from train.evaluation.characteristics import characteristics_of
    from train.evaluation.diagnosis import diagnose
    from train.evaluation.matching import evaluation_data, match_detections
    from train.evaluation.recall import recall_metrics

    ground_truth = make_ground_truth(sizes)
    results: Results = make_detections(sizes, ground_truth)
    with temporary_folder() as folder:
        path = folder / "detections.json"
        timed(rows, "write detections.json", lambda: write_detections(path, results, metadata={}))
        size = f"{path.stat().st_size / 2**20:.0f} MiB"
        results = timed(rows, "read detections.json", lambda: read_detections(path).results, size)
    note = "tIoU 0.5:0.05:0.95, from the parsed detections"
    timed(rows, "mAP", lambda: mean_average_precision(ground_truth, results), note)
    data = evaluation_data(ground_truth, results)
    matched = match_detections(data, np.array(parse_tiou("activitynet")[0]))
    note = "on top of mAP"
    timed(rows, "AR@AN, AUC, recall at k", lambda: recall_metrics(matched), note)
    timed(rows, "diagnosis", lambda: diagnose(matched, characteristics_of(data, ground_truth)), note)
    note = "mAP and AR; 1,000 take ten times as long"
    timed(rows, "bootstrap, 100 resamples", lambda: bootstrap(matched, resamples=100), note)


def bench_nms(sizes: Sizes, rows: list[Row]) -> None:
    """Soft-NMS of the proposals of each video, and the post-processing of some videos with every class."""
    from train.postprocess import PostSettings, RawWindow, postprocess_video
    from train.soft_nms import soft_nms

    rng = np.random.default_rng(sizes.seed)
    start, length, scores = rng.random((3, sizes.videos, sizes.proposals), dtype=np.float32)
    segments = np.stack([start, start + length / 4], -1) * SECONDS
    label, keep = np.zeros(sizes.proposals, dtype=np.int64), sizes.keep
    timed(
        rows,
        "soft-NMS",
        lambda: [soft_nms(s, p, label, max_keep=keep) for s, p in zip(segments, scores, strict=True)],
        f"{sizes.proposals} proposals a video, of one label, the best {keep} kept",
    )

    steps, settings = 128, PostSettings(max_detections=sizes.keep)
    windows = [
        RawWindow(
            key=f"video{number}",
            window=(0.0, SECONDS),
            duration=SECONDS,
            num_steps=steps,
            segments=np.sort(rng.uniform(0, steps, (sizes.proposals, 2)), axis=1).astype(np.float32),
            quality=rng.random(sizes.proposals).astype(np.float32),
            class_scores=rng.random((sizes.proposals, sizes.classes)).astype(np.float32),
            boundary=rng.random((2, steps)).astype(np.float32),
        )
        for number in range(sizes.post_videos)
    ]
    names = [f"class {number}" for number in range(sizes.classes)]
    note = f"{sizes.post_videos} videos of {sizes.proposals} proposals and {sizes.classes} classes"
    timed(rows, "post-processing", lambda: [postprocess_video([w], names, settings) for w in windows], note)


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    cells = [[row.part, f"{row.cpu_seconds:.2f}", f"{row.wall_seconds:.2f}", row.note] for row in rows]
    return columns([["part", "CPU s", "wall s", ""], *cells], "<>><")


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.option("--videos", type=click.IntRange(1), default=5000)
@click.option("--classes", type=click.IntRange(1), default=200)
@click.option("--detections", type=click.IntRange(2), default=100, help="Per video.")
@click.option("--proposals", type=click.IntRange(1), default=1000, help="Per video.")
@click.option("--keep", type=click.IntRange(1), default=100, help="By soft-NMS, per video.")
@click.option("--post-videos", type=click.IntRange(0), default=100, help="Post-processed.")
@click.option("--seed", type=click.IntRange(0), default=0)
@document_options
def main(output: Output, **values: int) -> None:
    sizes = Sizes(**values)
    described = {"numpy": np.__version__, **asdict(sizes)}
    output.say(header(described))
    rows: list[Row] = []
    bench_evaluation(sizes, rows)
    bench_nms(sizes, rows)
    output.say(table(rows))
    output.document({**described, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
