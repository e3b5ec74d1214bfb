"""Makes the built-in data set: untrimmed VP9 videos whose classes differ in motion only, with exact truth."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from pipeline.files import write_bytes

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np
from tqdm import tqdm

from pipeline.packing.encoder import encode_video
from tools.synthetic.scene import Script, render, write_script
from train.cli import Command, Output, check_new, force_option, output_options

SUBSETS = {"training": 1, "validation": 2}  # part of each video's seed: the splits share nothing


def make_video(subset: str, number: int, how: dict) -> tuple[Script, bytes]:
    """One video: its script and its encoded bytes. A pure function of its arguments.

    how: seed, size (pixels), fps, and the shortest and longest duration (seconds).
    """
    rng = np.random.default_rng([how["seed"], SUBSETS[subset], number])
    script = write_script(rng, fps=how["fps"], shortest=how["shortest"], longest=how["longest"])
    frames = render(script, rng, size=how["size"])
    return script, encode_video(frames, fps=how["fps"], codec="vp9", gop=32)


def annotation(script: Script, subset: str) -> dict:
    """The video's entry in an ActivityNet-style annotation file."""
    actions = [{"segment": [action.start, action.end], "label": action.label} for action in script.actions]
    return {"subset": subset, "duration": script.duration, "annotations": actions}


def make_dataset(
    out: Path,
    *,
    train: int,
    val: int,
    how: dict,
    output: Output,
) -> dict:
    """Write `out`/videos/*.mp4 and `out`/annotations.json; returns the annotations. how: see make_video."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    wanted = [("training", i) for i in range(train)] + [("validation", i) for i in range(val)]
    database = {}
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        made = workers.map(make_video, *zip(*wanted, strict=True), repeat(how))
        bar = tqdm(made, total=len(wanted), desc="rendering", unit="video", disable=output.no_bar)
        for (subset, number), (script, data) in zip(wanted, bar, strict=True):
            key = f"{subset[:5]}_{number:04d}"
            write_bytes(out / "videos" / f"{key}.mp4", data)
            database[key] = annotation(script, subset)
    annotations = {"version": f"leantad-synthetic seed {how['seed']}", "database": database}
    write_bytes(out / "annotations.json", json.dumps(annotations, indent=1).encode())
    return annotations


@click.command(
    cls=Command, epilog="Example: leantad make-synthetic --out data/synthetic --train 200 --val 40"
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/synthetic"), show_default=True)
@click.option("--train", type=click.IntRange(0), default=200, show_default=True, help="Training videos.")
@click.option("--val", type=click.IntRange(0), default=40, show_default=True, help="Validation videos.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--size", type=click.IntRange(16, 512), default=48, show_default=True, help="Width and height, pixels."
)
@click.option("--fps", type=click.IntRange(2, 60), default=12, show_default=True, help="Frames per second.")
@click.option("--shortest", type=float, default=4.0, show_default=True, help="Shortest video, seconds.")
@click.option("--longest", type=float, default=40.0, show_default=True, help="Longest video, seconds.")
@force_option
@output_options
def main(out: Path, train: int, val: int, force: bool, quiet: bool, as_json: bool, **how: float) -> None:
    """Render synthetic videos and their annotations; pack them with make-shards like your own."""
    shortest, longest = how["shortest"], how["longest"]
    if not 1.0 <= shortest <= longest:
        raise ValueError(
            f"--shortest/--longest: got {shortest} and {longest}, want 1 <= shortest <= longest seconds"
        )
    if train + val == 0:
        raise ValueError("--train/--val: got 0 and 0, want at least one video")
    check_new(out / "annotations.json", force=force)  # the last file: without it the videos are not all there
    output = Output(quiet, as_json)
    annotations = make_dataset(out, train=train, val=val, how=how, output=output)
    actions = sum(len(video["annotations"]) for video in annotations["database"].values())
    output.say(
        f"{train + val} videos, {actions} actions in {out}; next: leantad make-shards {out}/videos "
        f"{out}/annotations.json --out data/demo --copy"
    )
    output.document({"videos": train + val, "actions": actions, "annotations": out / "annotations.json"})


if __name__ == "__main__":
    main()
