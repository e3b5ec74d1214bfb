"""Data sets that grow along one axis, what each command costs on them, and by which power it grows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import read_json, write_bytes, write_json
from pipeline.packing.encoder import encode_video
from tools.synthetic.scene import draw_scenario, render
from train.distributed import LAUNCH_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
JOBS = ("pack", "train", "eval", "predict", "mAP")
SUBSETS = ("training", "validation")
FPS, PIXELS = 12, 32
SETTINGS = {  # a window has as many clips whatever the video's length, as for long videos
    "data.window_seconds": 8,
    "data.num_clips": 8,
    "data.clip_frames": 4,
    "data.resize": 24,
    "data.crop": 24,
    "encoder.clips_per_forward": 8,
    "detector.num_steps": 16,
    "optimizer.batch_size": 2,
    "optimizer.warmup_steps": 1,
    "run.epochs": 1,
    "run.device": "cpu",
}
COPIES = 50  # of a validation video and its detections, for mAP: of a few it takes no time to speak of
LEAST_GROWTH = 0.1  # of the cost at the smallest size: what grows less over all sizes does not grow


@dataclass(frozen=True)
class Sizes:
    """A data set: training and as many validation videos, their seconds, classes, and actions of a video."""

    videos: int = 6
    seconds: int = 16
    classes: int = 5
    actions: int = 4

    def times(self, axis: str, factor: int) -> Sizes:
        """The same, larger along one axis; a longer video has as many actions a second."""
        changes = {axis: asdict(self)[axis] * factor}
        if axis == "seconds":
            changes["actions"] = self.actions * factor
        return replace(self, **changes)


AXES = tuple(asdict(Sizes()))


def make_inputs(folder: Path, sizes: Sizes) -> None:
    """Write `folder`/videos/*.mp4 and annotations.json; the actions' times and labels follow from numbers."""
    (folder / "videos").mkdir(parents=True)
    database: dict[str, Any] = {}
    for seed, subset in enumerate(SUBSETS):
        for number in range(sizes.videos):
            rng = np.random.default_rng([seed, number])
            scenario = draw_scenario(rng, fps=FPS, shortest=sizes.seconds, longest=sizes.seconds)
            frames = render(scenario, rng, size=PIXELS)
            data = encode_video(frames, fps=FPS, codec="vp9", gop=32)
            write_bytes(folder / "videos" / f"{subset}_{number}.mp4", data)
            entry = {"subset": subset, "duration": sizes.seconds, "annotations": _actions(number, sizes)}
            database[f"{subset}_{number}"] = entry
    named = {action["label"] for video in database.values() for action in video["annotations"]}
    missing = sorted({f"class {number}" for number in range(sizes.classes)} - named)
    for number, label in enumerate(missing):  # more classes than actions: further actions
        video = database[f"{SUBSETS[0]}_{number % sizes.videos}"]
        video["annotations"].append({"segment": [0.0, sizes.seconds / sizes.actions], "label": label})
    write_json(folder / "annotations.json", {"version": "growth", "database": database})


def _actions(video: int, sizes: Sizes) -> list[dict[str, Any]]:
    """The actions of a video: evenly spread, one after the other, half of the time nothing."""
    step = sizes.seconds / sizes.actions
    labels = [f"class {(video + sizes.videos * number) % sizes.classes}" for number in range(sizes.actions)]
    return [
        {"segment": [number * step, (number + 0.5) * step], "label": label}
        for number, label in enumerate(labels)
    ]


def command_of(job: str, folder: Path, out: Path) -> list[str]:
    """The words of a job's command line; each job needs what the ones before it left in `out`."""
    shards, run, truth = out / "shards", out / "run", folder / "annotations.json"
    many = out / "many"
    sets = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    detections = out / "detections.json"
    arguments: dict[str, list[str | Path]] = {
        "pack": ["make-shards", folder / "videos", truth, "--out", shards, "--copy", "--workers", "1"],
        "train": ["train", "--recipe", "demo", "--out", run, "--set", f"data.shards={shards}", *sets],
        "eval": ["eval", "--checkpoint", run, "--out", detections],
        "predict": ["predict", folder / "videos", "--checkpoint", run, "--out", out / "predicted"],
        "mAP": [
            *("eval", "--detections", many / detections.name, "--ground-truth", many / truth.name),
            *("--subset", SUBSETS[1]),
        ],
    }
    return [sys.executable, str(ROOT / "tools" / "cli.py"), *map(str, arguments[job]), "--quiet"]


def multiply(folder: Path, out: Path, copies: int) -> None:
    """Write to `out`/many the annotations of `folder` and the detections of `out` with so many copies of each
    validation video.
    """
    truth, found = read_json(folder / "annotations.json"), read_json(out / "detections.json")
    database, results = truth["database"], found["results"]
    truth["database"] = {key: entry for key, entry in database.items() if key not in results}
    truth["database"] |= _copied({key: database[key] for key in results}, copies)
    found["results"] = _copied(results, copies)
    (out / "many").mkdir()
    write_json(out / "many" / "annotations.json", truth)
    write_json(out / "many" / "detections.json", found)


def _copied(videos: dict[str, Any], copies: int) -> dict[str, Any]:
    return {f"{key} {number}": value for key, value in videos.items() for number in range(copies)}


def cpu_seconds(command: Sequence[str]) -> float:
    """Of a process and all that it waits for. RuntimeError, with its last line, if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other would count
    before = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        raise RuntimeError(f"{' '.join(command[2:4])}: exit code {done.returncode}: {last}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def costs(folder: Path, sizes: Sequence[Sizes], turns: int) -> Iterator[tuple[str, int, float]]:
    """A job's name, the number of a size, and its CPU seconds on a data set of it made in the folder.

    Each turn goes over all sizes: a machine that is slower for some minutes is so for all of them.
    """
    for number, size in enumerate(sizes):
        make_inputs(folder / str(number), size)
    for turn in range(turns):
        for number in range(len(sizes)):
            inputs = folder / str(number)
            out = inputs / f"turn{turn}"
            out.mkdir()
            for job in JOBS:
                if job == "mAP":
                    multiply(inputs, out, COPIES)
                yield job, number, cpu_seconds(command_of(job, inputs, out))


@dataclass(frozen=True)
class Cost:
    """Of a job: the least seconds on each size, and by how much the least two turns of a size differ at most
    (0 after one turn).
    """

    seconds: list[float]
    noise: float


def costs_of_jobs(timings: Iterable[tuple[str, int, float]], num_sizes: int) -> dict[str, Cost]:
    """What all turns together say of each job."""
    turns: dict[str, list[list[float]]] = {}
    for job, number, seconds in timings:
        turns.setdefault(job, [[] for _ in range(num_sizes)])[number].append(seconds)
    found = {}
    for job, sizes in turns.items():
        rising = [sorted(seconds) for seconds in sizes]
        noise = max((of[1] - of[0] for of in rising if len(of) > 1), default=0.0)
        found[job] = Cost([of[0] for of in rising], noise)
    return found


def exponent(factors: Sequence[int], seconds: Sequence[float], noise: float = 0.0) -> float:
    """p of the curve a + b * factor**p, a and b not negative, that lies nearest; 0 where cost hardly grows.

    a is what a command costs however small its input, its start above all. noise: seconds; a growth that is
    not larger is none.
    """
    x, y = np.asarray(factors, dtype=float), np.asarray(seconds, dtype=float)
    if y.max() - y[0] <= max(LEAST_GROWTH * y[0], noise):
        return 0.0
    best = (np.inf, 0.0)
    for power in np.arange(0.1, 3.01, 0.01):
        grown = x**power
        slope = max(float(np.polyfit(grown, y, 1)[0]), 0.0)
        start = max(float((y - slope * grown).mean()), 0.0)
        if start == 0.0:
            slope = float(grown @ y / (grown @ grown))
        best = min(best, (float(np.square(y - start - slope * grown).sum()), float(power)))
    return round(best[1], 2)
