"""Losses of one training with and without each speed-up: `python tests/loss_curves.py DATA --work curves`.

DATA: the packed data set of `make demo`. Every run of a group starts from the same seed and sees the same
windows; only how it computes differs. `two threads` sums in another order, which nobody calls another result:
the others may part from the first run by as much. Prints a table, and writes a chart of each group. Complete
runs are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from pipeline.files import write_text  # noqa: E402
from train.report.charts import HEIGHT, WIDTH, Line, line_chart  # noqa: E402
from train.report.svg import image_file  # noqa: E402

COLOURS = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
SHOWN = (1, 10, 50, 100)  # steps whose differences are printed


@dataclass(frozen=True)
class Group:
    """Runs of one training: settings of all, and by name those of each speed-up; the first run has none."""

    settings: tuple[str, ...]
    speed_ups: dict[str, tuple[str, ...]] = field(default_factory=dict)


TWO_THREADS = "two threads"
STEPS = ("run.epochs=2", "run.eval_every=2", "run.log_every=1", "data.decode_workers=1")
SWIN = (
    "encoder.backbone=video_swin_t",
    "data.num_clips=4",
    "data.clip_frames=8",
    "optimizer.encoder_lr=5.0e-4",
)
GROUPS = {
    "reversible R(2+1)D": Group(
        (*STEPS, "run.precision=float32"),
        {
            TWO_THREADS: (),
            "graphs kept": ("encoder.keep_graphs=true",),
            "8 clips a forward": ("encoder.clips_per_forward=8",),
            "two decoders": ("data.decode_workers=2",),
            "bf16": ("run.precision=bf16",),
        },
    ),
    "reversible Video Swin-T": Group(
        (*STEPS, *SWIN, "run.precision=float32", "encoder.slice_mib=null"),
        {TWO_THREADS: (), "slices of 1 MiB": ("encoder.slice_mib=1",)},
    ),
}


def losses(data: Path, out: Path, settings: tuple[str, ...], *, threads: int) -> list[float]:
    """Train, unless it is done; returns the loss of each step."""
    sets = [word for setting in (f"data.shards={data}", *settings) for word in ("--set", setting)]
    command = [sys.executable, str(ROOT / "train" / "main.py"), "--recipe", "demo", *sets]
    if not (out / "metrics.json").exists():
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--out", str(out), "--resume", "--quiet"], env=environment, check=True)
    events = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "train"]


def differences(first: list[float], other: list[float]) -> list[float]:
    """Of each step, relative to the first run's loss."""
    return [abs(a - b) / abs(a) for a, b in zip(first, other, strict=True)]


def row(name: str, off: list[float]) -> str:
    """A line of the table: differences at SHOWN, and their mean over the last half."""
    shown = [f"{off[step - 1]:.1e}" if step <= len(off) else "-" for step in SHOWN]
    half = off[len(off) // 2 :]
    return f"| {name} | {' | '.join(shown)} | {sum(half) / len(half):.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("curves"))
    given = parser.parse_args()
    for title, group in GROUPS.items():
        folder = given.work / title.replace(" ", "-").lower()
        first = losses(given.data, folder / "first", group.settings, threads=1)
        lines = [Line("first", list(enumerate(first, 1)), COLOURS[0], width=5, faint=True)]
        print(f"| {title} | {' | '.join(f'step {step}' for step in SHOWN)} | mean of the last half |")
        print("| --- " * (len(SHOWN) + 2) + "|")
        for number, (name, settings) in enumerate(group.speed_ups.items(), 1):
            out = folder / name.replace(" ", "-")
            threads = 2 if name == TWO_THREADS else 1
            values = losses(given.data, out, (*group.settings, *settings), threads=threads)
            lines.append(Line(name, list(enumerate(values, 1)), COLOURS[number % len(COLOURS)], width=1.2))
            print(row(name, differences(first, values)), flush=True)
        shown = f"Losses: {title}"
        chart = line_chart(lines, x_label="optimizer step", title=shown, log=True)
        file = image_file([chart], shown, width=WIDTH, height=HEIGHT)
        write_text(folder.with_suffix(".svg"), file)


if __name__ == "__main__":
    main()
