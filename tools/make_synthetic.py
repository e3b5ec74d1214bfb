"""Makes the built-in data set: untrimmed VP9 videos whose classes differ in motion only, with annotations."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np

from pipeline.files import write_bytes, write_json
from pipeline.packing.encoder import encode_video
from pipeline.packing.workers import exit_with_parent
from tools.synthetic.hard_scene import draw_hard_scenario, draw_view
from tools.synthetic.scene import Scenario, draw_scenario, render
from train.cli import PATH, Command, Output, check_new, force_option, output_options

SUBSETS = {"training": 1, "validation": 2}  # part of each video's seed: no two subsets share a video


@dataclass(frozen=True)
class VideoOptions:
    """Size: pixels; fps: frames per second; shortest, longest: seconds; hard: which task."""

    seed: int
    size: int
    fps: int
    shortest: float
    longest: float
    hard: bool = False

    def check(self) -> None:
        """ValueError for durations that cannot be."""
        if not 1.0 <= self.shortest <= self.longest:
            raise ValueError(
                f"--shortest/--longest: got {self.shortest} and {self.longest}, want "
                "1 <= shortest <= longest seconds"
            )


def make_video(subset: str, number: int, options: VideoOptions) -> tuple[Scenario, bytes]:
    """One video: its scenario and its encoded bytes. A pure function of its arguments."""
    rng = np.random.default_rng([options.seed, SUBSETS[subset], number])
    draw = draw_hard_scenario if options.hard else draw_scenario
    scenario = draw(rng, fps=options.fps, shortest=options.shortest, longest=options.longest)
    view = draw_view(rng, scenario, size=options.size) if options.hard else None
    frames = render(scenario, rng, size=options.size, view=view)
    return scenario, encode_video(frames, fps=options.fps, codec="vp9", gop=32)


def annotation(scenario: Scenario, subset: str) -> dict[str, Any]:
    """The video's entry in an ActivityNet-style annotation file."""
    actions = [{"segment": [action.start, action.end], "label": action.label} for action in scenario.actions]
    return {"subset": subset, "duration": scenario.duration, "annotations": actions}


def make_dataset(out: Path, *, train: int, val: int, options: VideoOptions, output: Output) -> dict[str, Any]:
    """Write `out`/videos/*.mp4 and `out`/annotations.json; returns the annotations."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    wanted = [("training", i) for i in range(train)] + [("validation", i) for i in range(val)]
    database = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=exit_with_parent) as workers:
        made: Iterable[tuple[Scenario, bytes]] = workers.map(
            make_video, *zip(*wanted, strict=True), repeat(options)
        )
        made = output.progress(made, "rendering", unit="video", total=len(wanted))
        for (subset, number), (scenario, data) in zip(wanted, made, strict=True):
            key = f"{subset[:5]}_{number:04d}"
            write_bytes(out / "videos" / f"{key}.mp4", data)
            database[key] = annotation(scenario, subset)
    annotations = {"version": f"leantad-synthetic seed {options.seed}", "database": database}
    write_json(out / "annotations.json", annotations)
    return annotations


@click.command(
    cls=Command, epilog="Example: leantad make-synthetic --out data/synthetic --train 200 --val 40"
)
@click.option("--out", type=PATH, default=Path("data/synthetic"))
@click.option("--train", type=click.IntRange(0), default=200, help="Training videos.")
@click.option("--val", type=click.IntRange(0), default=40, help="Validation videos.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Same seed, same bytes.")
@click.option("--size", type=click.IntRange(16, 512), default=48, help="Width and height, pixels.")
@click.option("--fps", type=click.IntRange(2, 60), default=12, help="Frames per second.")
@click.option("--shortest", type=float, default=4.0, help="Shortest video, seconds.")
@click.option("--longest", type=float, default=40.0, help="Longest video, seconds.")
@click.option(
    "--hard", is_flag=True, help="Short and overlapping actions, a moving camera, things in the way."
)
@force_option
@output_options
def main(*, out: Path, train: int, val: int, force: bool, output: Output, **values: Any) -> None:
    """Render synthetic videos and their annotations; pack them with make-shards like your own."""
    options = VideoOptions(**values)
    options.check()
    if train + val == 0:
        raise ValueError("--train/--val: got 0 and 0, want at least one video")
    check_new(out / "annotations.json", force=force)  # the last file: without it the videos are not all there
    annotations = make_dataset(out, train=train, val=val, options=options, output=output)
    actions = sum(len(video["annotations"]) for video in annotations["database"].values())
    output.say(
        f"{train + val} videos, {actions} actions in {out}; next: leantad make-shards {out}/videos "
        f"{out}/annotations.json --out data/demo --copy"
    )
    output.document({"videos": train + val, "actions": actions, "annotations": out / "annotations.json"})


if __name__ == "__main__":
    main()
