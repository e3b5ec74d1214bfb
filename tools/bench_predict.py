"""Measures how many seconds of video predict gets through in a second, against a plain loop.

Both detect in the same files with the same trained network; then each part of predict runs alone.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import columns, counted
from tools.benchmarks.common import environment, figure, header
from train.cli import PATH, Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.predict import PredictRow

HELP = """Measure how many seconds of VIDEO files predict gets through in a second.

The plain loop decodes with PyAV and runs the same network in one process. Then each part of predict runs
alone: re-encoding as the training data was, decoding clips, encoder, detector, post-processing. Whole and
parts share the processor, so predict may take less than its parts together.
"""
EXAMPLES = """
\b
Example:
  leantad bench-predict recordings/ --checkpoint runs/demo
"""


def table(rows: list[PredictRow]) -> str:
    """The rows as aligned text."""
    cells = [["part", "seconds", "CPU s", "video s/s", "x plain loop"]]
    for row in rows:
        figures = [f"{row.seconds:.2f}", f"{row.cpu_seconds:.2f}", f"{row.video_seconds_per_second:.1f}"]
        cells.append([row.part, *figures, figure(row.times_plain, ".2f")])
    return columns(cells, "<>>>>")


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--checkpoint", type=PATH, required=True, help="Run (its best), checkpoint or model file.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--repeats", type=click.IntRange(1), default=2, help="Turns; the least counts.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@document_options
def main(
    videos: tuple[str, ...],
    checkpoint: Path,
    device: str,
    repeats: int,
    overrides: tuple[str, ...],
    output: Output,
) -> None:
    from pipeline.packing.prepare import find_videos
    from tools.benchmarks.predict import COMPARED, measure
    from tools.prediction.detect import load_detector

    files = find_videos(videos)
    trained = load_detector(checkpoint, device=device, overrides=overrides)
    described = environment(trained.device.type)
    output.say(header(described))
    with output.others_on_stderr():
        measured = measure(trained, files, repeats=repeats)
    output.say(f"{counted(len(files), 'video')}, {measured.video_seconds:.0f} s")
    output.say(table(measured.rows))
    output.say(
        f"the best {COMPARED} detections of each video: found by the plain loop at a mean tIoU of "
        f"{measured.agreement:.2f}"
    )
    output.document({**described, "checkpoint": trained.source, **asdict(measured)})


if __name__ == "__main__":
    main()
