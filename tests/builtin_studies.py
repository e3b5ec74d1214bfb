"""Repeats the tables of docs/studies.md on built-in data: `python tests/builtin_studies.py --work studies`.

Renders and packs the demo's videos and harder ones. The demo's recipe learns two motions of the former, the
other three motions being background; every run of the seven studies starts from that encoder and learns all
five in the latter, so that it matters how the encoder is trained. One `leantad ablate` a study; what is
complete is not run again, and a run that two studies share is copied (from `frozen`, so that it comes first).
--only NAME takes a study; --smallest four videos, one epoch and seed of the first: everything runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from real_studies import leantad  # noqa: E402

from pipeline.files import read_json, write_json  # noqa: E402

# study -> recipe, setting, values; the first of each is what the recipe has, but for the proposals' ratio
STUDIES: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "frozen": ("demo", "encoder.frozen", (False, True)),
    "ratio": ("demo", "encoder.clip_ratio", (0.3, 0.1, 0.5, 1.0)),
    "clips": (
        "demo",
        "encoder.clip_sampling",
        ("random", "uniform", "block", "labels", "farthest", "dpp", "top_gradient", "importance"),
    ),
    "proposal_ratio": ("demo", "detector.proposal_ratio", (0.02, 0.06, 0.2, 1.0)),
    "ema": ("demo", "optimizer.ema_decay", (0.0, 0.98)),
    "actionformer": ("demo_actionformer", "detector.kind", ("actionformer",)),
    "proposals": (
        "demo",
        "detector.proposal_sampling",
        ("random", "grid", "block", "farthest", "dpp", "balanced", "scale_balanced"),
    ),
}
SHARED = {"ratio", "clips", "ema", "proposals"}  # whose first value is that of `frozen`
PRETRAINED = ("slide-left", "slide-right")  # the classes that the encoder knows at the start
EPOCHS = ("run.epochs=2", "run.eval_every=2")
SMALLEST = ("run.epochs=1", "run.eval_every=1", "data.num_clips=8", "detector.num_steps=8")


def packed(work: Path, name: str, *options: object, classes: tuple[str, ...] = ()) -> Path:
    """Rendered and packed videos, with the actions of some classes alone, none given: of all."""
    videos, data = work / f"{name}-videos", work / name
    if not (data / "dataset.json").exists():
        leantad("make-synthetic", *options, "--out", videos, "--force", "--quiet")
        annotations = videos / "annotations.json"
        if classes:
            document = read_json(annotations)
            for video in document["database"].values():
                video["annotations"] = [each for each in video["annotations"] if each["label"] in classes]
            write_json(annotations, document)
        leantad("make-shards", videos / "videos", annotations, "--out", data, "--copy", "--force", "--quiet")
    return data


def encoder_of(run: Path, data: Path, out: Path, *, smallest: bool) -> Path:
    """The encoder of the demo's recipe, trained on `data`."""
    if not out.exists():
        sets = [word for each in SMALLEST if smallest for word in ("--set", each)]
        words = ["--recipe", "demo", "--set", f"data.shards={data}", *sets, "--out", str(run), "--resume"]
        subprocess.run([sys.executable, str(ROOT / "train" / "main.py"), *words, "--quiet"], check=True)
        leantad("convert-weights", run / "checkpoints" / "best" / "model.safetensors", "--out", out)
    return out


def share(work: Path, study: str, seeds: int) -> None:
    """Give a study the runs of `frozen` that have its first value's settings."""
    _, setting, values = STUDIES[study]
    name = f"{setting.rpartition('.')[2]}={values[0]}"
    for seed in range(seeds):
        ours = work / study / "runs" / f"{name}-seed{seed}"
        theirs = work / "frozen" / "runs" / f"frozen=false-seed{seed}"
        if not ours.exists() and theirs.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(theirs, ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("studies"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=[*STUDIES], action="append", help="repeatable")
    parser.add_argument("--smallest", action="store_true")
    given = parser.parse_args()
    work, smallest = given.work.resolve(), given.smallest
    few = ("--train", 4, "--val", 2) if smallest else ()
    demo = packed(work, "demo", *few, classes=PRETRAINED)
    hard = packed(work, "hard", "--hard", *(few or ("--train", 320)))
    weights = encoder_of(work / "demo-run", demo, work / "encoder.safetensors", smallest=smallest)
    sets = [f"data.shards={hard}", f"encoder.weights={weights}", *(SMALLEST if smallest else EPOCHS)]
    seeds = 1 if smallest else given.seeds
    for study in given.only or list(STUDIES)[: 1 if smallest else None]:
        recipe, setting, values = STUDIES[study]
        if study in SHARED:
            share(work, study, seeds)
        varied = f"{setting}={','.join(json.dumps(value).strip(chr(34)) for value in values)}"
        words = [word for each in sets for word in ("--set", each)]
        options = ("--vary", varied, "--seeds", seeds, "--out", work / study, "--quiet")
        leantad("ablate", "--recipe", recipe, *words, *options)
        print((work / study / "results.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
