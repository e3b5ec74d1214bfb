"""Repeats the tables of docs/results.md from raw footage and pretrained weights, one command for each.

    python tests/real_studies.py people FOLDER --work studies

FOLDER/footage/ holds jhmdb_stitched/ and fir21/, each with videos/ and annotations.csv (video, start, end,
label, subset); FOLDER/weights/ holds i3d_kinetics400_rgb.safetensors and
efficientnet_lite0_imagenet.safetensors. What is complete is not run again, so an interrupted study goes on.
image-network wants timm; PYTHONPATH=tests/image_networks finds the one that `make setup` puts apart.
--smallest takes two videos, small clips, an epoch, a seed, and of the first study the first value: it shows
that everything runs, not what comes of it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from pipeline.dataset import Dataset  # noqa: E402
from pipeline.files import read_json, write_json, write_text  # noqa: E402
from tools.cli import main as main_command  # noqa: E402
from train.evaluation.average_precision import mean_average_precision  # noqa: E402
from train.evaluation.chance import random_detections  # noqa: E402

LOW_TIOU = (0.1, 0.2, 0.3, 0.4, 0.5)  # where times are good to about a second
CHANCE_DRAWS = 10
I3D, IMAGE = "i3d_kinetics400_rgb", "efficientnet_lite0_imagenet"
BACKBONES = {I3D: "i3d", IMAGE: "timm:tf_efficientnet_lite0"}
SMALL_CLIPS = {"data.num_clips": 16, "data.resize": 96, "data.crop": 80, "detector.num_steps": 32}
FIVE_EPOCHS = {"run.epochs": 5, "run.eval_every": 5, "run.log_every": 10}
BF16 = {"run.precision": "bf16"}
SMALLEST = {
    "data.num_clips": 4,
    "data.resize": 36,
    "data.crop": 32,
    "encoder.clips_per_forward": 4,
    "detector.num_steps": 16,
    "run.epochs": 1,
    "run.eval_every": 1,
}
VIDEOS_OF_SMALLEST = 1  # of each subset


@dataclass(frozen=True)
class Study:
    """One `leantad ablate`: settings on top of a recipe, and the one that varies.

    weights: None for random ones. one_seed: whatever --seeds says.
    """

    recipe: str
    settings: dict[str, object]
    vary: tuple[str, tuple[object, ...]]
    weights: str | None
    one_seed: bool = False


@dataclass(frozen=True)
class Table:
    """The studies of a table on one data set, by name.

    classes: None for all. shuffled: studies whose runs are evaluated again, with the frames of each clip in
    random order. low_tiou: those that are evaluated at LOW_TIOU, too, beside chance.
    """

    footage: str
    studies: dict[str, Study]
    classes: tuple[str, ...] | None = None
    shuffled: tuple[str, ...] = ()
    low_tiou: tuple[str, ...] = ()


PEOPLE = {**SMALL_CLIPS, **FIVE_EPOCHS, **BF16}
TABLES = {
    "people": Table(
        "jhmdb_stitched",
        {
            "frozen": Study("own_videos_i3d_cpu", PEOPLE, ("encoder.frozen", (True, False)), I3D),
            "ratio": Study(
                "own_videos_i3d_cpu", PEOPLE, ("encoder.clip_ratio", (0.1, 1.0)), I3D, one_seed=True
            ),
            "scratch": Study(
                "own_videos_i3d_cpu",
                {**PEOPLE, "encoder.reversible": True},
                ("encoder.backbone", ("r2plus1d_tiny",)),
                None,
                one_seed=True,
            ),
        },
        shuffled=("frozen",),
    ),
    "image-network": Table(
        "jhmdb_stitched",
        {
            "rewired": Study(
                "own_videos_timm",
                {**SMALL_CLIPS, **FIVE_EPOCHS},
                ("encoder.beta.schedule", ("linear", "constant")),
                IMAGE,
            ),
            "plain": Study(
                "own_videos_timm",
                {**SMALL_CLIPS, **FIVE_EPOCHS, "encoder.leapfrog": False},
                ("encoder.reversible", (False,)),
                IMAGE,
            ),
        },
    ),
    "ceiling": Table(
        "fir21",
        {
            "frozen": Study(
                "own_videos_i3d_cpu",
                {
                    "data.num_clips": 128,
                    "data.stride_frames": 2,
                    "data.resize": 72,
                    "data.crop": 64,
                    "detector.num_steps": 256,
                    "detector.proposal_ratio": 0.05,
                    "optimizer.batch_size": 1,
                    "run.epochs": 30,
                    "run.eval_every": 10,
                    "run.log_every": 10,
                    **BF16,
                },
                ("encoder.frozen", (False, True)),
                I3D,
                one_seed=True,
            ),
        },
        classes=("walk", "standup", "sitdown", "sit", "falling"),
        low_tiou=("frozen",),
    ),
}


def leantad(*words: object) -> str:
    """Run one of our commands; returns what it prints. Ends where it fails, after its own message."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = main_command.main(list(map(str, words)), prog_name="leantad", standalone_mode=False)
    if code:
        sys.exit(code)
    return printed.getvalue()


def pack(footage: Path, out: Path, *, classes: Sequence[str] | None, videos: int | None) -> Path:
    """Pack some classes of the `videos` smallest files of each subset, None: all; returns the data set."""
    if (out / "dataset.json").exists():
        return out
    with open(footage / "annotations.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if classes is None or row["label"] in classes]
    subsets: dict[str, set[str]] = {}
    for row in rows:
        subsets.setdefault(row["subset"], set()).add(row["video"])
    sizes = {path.stem: (path.stat().st_size, path.stem) for path in (footage / "videos").iterdir()}
    kept = {name for named in subsets.values() for name in sorted(named, key=sizes.__getitem__)[:videos]}
    text, annotations = io.StringIO(), out.with_suffix(".csv")
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(row for row in rows if row["video"] in kept)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    write_text(annotations, text.getvalue())
    leantad("make-shards", footage / "videos", annotations, "--out", out, "--quiet")
    return out


def converted(folder: Path, work: Path, weights: str) -> Path:
    """The weights of a backbone in our names."""
    out = work / f"{weights}.safetensors"
    if not out.exists():
        backbone = BACKBONES[weights]
        leantad("convert-weights", folder / f"{weights}.safetensors", "--backbone", backbone, "--out", out)
    return out


def ablate_words(study: Study, *, seeds: int, smallest: bool) -> list[str]:
    """The options of `leantad ablate` but for data, weights and the folder."""
    settings = {**study.settings, **(SMALLEST if smallest else {})}
    name, values = study.vary
    values = values[:1] if smallest else values
    varied = ",".join(json.dumps(value).strip('"') for value in values)
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return [
        "--recipe",
        study.recipe,
        *sets,
        "--vary",
        f"{name}={varied}",
        "--seeds",
        str(1 if study.one_seed or smallest else seeds),
    ]


def evaluated(run: Path, out: Path, *words: object) -> dict[str, Any]:
    """What `leantad eval` finds of a run."""
    if not out.exists():
        found = leantad(
            "eval",
            "--checkpoint",
            run,
            *words,
            "--out",
            out.with_suffix(".detections.json"),
            "--json",
            "--quiet",
        )
        write_json(out, json.loads(found))
    document: dict[str, Any] = read_json(out)
    return document


def chance(data: Path) -> list[float]:
    """mAP at LOW_TIOU of segments as of the training actions, at random places: the mean of ten draws."""
    dataset = Dataset.open(str(data))
    actions = [action for video in dataset.packed("training") for action in video.actions]
    videos = dataset.ground_truth("validation")
    draws = [random_detections(videos, seed=seed, actions=actions) for seed in range(CHANCE_DRAWS)]
    found = [mean_average_precision(videos, draw, tiou=LOW_TIOU)["mAP"] for draw in draws]
    return [float(value) for value in np.mean(found, axis=0)]


def repeat(name: str, folder: Path, work: Path, *, seeds: int, smallest: bool) -> list[str]:
    """Run a table's studies; returns its lines: study, value, mAP in percent."""
    table, lines = TABLES[name], []
    work = work / "smallest" if smallest else work  # no study takes the few videos for all of them
    videos = VIDEOS_OF_SMALLEST if smallest else None
    data = pack(
        folder / "footage" / table.footage, work / table.footage, classes=table.classes, videos=videos
    )
    if table.low_tiou:
        lines.append(f"chance: mAP at {LOW_TIOU} {percent(chance(data))}")
    for key, study in list(table.studies.items())[: 1 if smallest else None]:
        weights = None if study.weights is None else converted(folder / "weights", work, study.weights)
        sets = ["--set", f"data.shards={data}", "--set", f"encoder.weights={weights or 'null'}"]
        out = work / name / key
        leantad("ablate", *ablate_words(study, seeds=seeds, smallest=smallest), *sets, "--out", out)
        document = read_json(out / "results.json")
        lines += [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]
        for run in document["runs"]:
            checkpoint, beside = Path(run["folder"]), work / name / f"{key}-{run['name']}"
            if key in table.shuffled:
                found = evaluated(
                    checkpoint, beside.with_suffix(".shuffled.json"), "--set", "data.shuffle_frames=true"
                )
                lines.append(f"{run['name']}, frames shuffled: average {percent([found['average_mAP']])}")
            if key in table.low_tiou:
                tiou = ",".join(map(str, LOW_TIOU))
                found = evaluated(checkpoint, beside.with_suffix(".low.json"), "--tiou", tiou)
                lines.append(f"{run['name']}: mAP at {LOW_TIOU} {percent(found['mAP'])}")
    return lines


def percent(values: Sequence[float]) -> str:
    """Shares as percent, one digit."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("studies"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smallest", action="store_true")
    given = parser.parse_args()
    print(
        *repeat(given.table, given.folder, given.work, seeds=given.seeds, smallest=given.smallest), sep="\n"
    )


if __name__ == "__main__":
    main()
