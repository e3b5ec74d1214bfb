"""Measures how fast clips are decoded: our decoder, a plain PyAV loop, decord and torchcodec where installed.

All get the same clips of the same videos, packed in H.264 and VP9, from memory, with one thread each; RGB
frames of the source's size come out. They take turns, the least of --repeats counts, and pixels are compared.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import columns
from tools.benchmarks.common import environment, figure, header, source_options
from train.cli import Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.data import DataRow

HELP = """Measure how fast clips are decoded: ours, a plain PyAV loop, decord, torchcodec.

The same clips for all, from memory, one thread each. CPU seconds as multiples of ours: above 1, the other
one takes longer. The last columns are levels of 255 from our pixels. A library that is not installed has no
figures.
"""
EXAMPLES = """
\b
Examples:
  leantad bench-data
  leantad bench-data --videos my_videos --short-side 256 --clips 16
"""


def table(rows: list[DataRow]) -> str:
    """The rows as aligned text; what was not measured is a dash."""
    cells = [["codec", "decoder", "version", "clips/s", "CPU s", "x ours", "most off", "mean off"]]
    for row in rows:
        figures = [(row.clips_per_second, ".1f"), (row.cpu_seconds, ".3f"), (row.times_ours, ".2f")]
        figures += [(row.most_off, "d"), (row.mean_off, ".2f")]
        shown = [figure(value, layout) for value, layout in figures]
        cells.append([row.codec, row.decoder, row.version, *shown])
    return columns(cells, "<<<>")


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@source_options(count=4, seconds=20.0)
@click.option("--short-side", type=click.IntRange(16), default=128, help="Pixels.")
@click.option("--clips", type=click.IntRange(1), default=8, help="Of each video.")
@click.option("--frames", type=click.IntRange(1), default=16, help="Of a clip.")
@click.option("--stride", type=click.IntRange(1), default=1, help="Frames from one of a clip to the next.")
@click.option("--repeats", type=click.IntRange(1), default=3, help="Timed turns.")
@document_options
def main(*, output: Output, **values: Any) -> None:
    from tools.benchmarks.data import DataOptions, measure

    options = DataOptions(**values)
    if options.short_side % 16:
        raise ValueError(f"--short-side: got {options.short_side}, want a multiple of 16")
    described = environment("cpu")
    output.say(header({**described, **asdict(options)}))
    rows = [row for codec in dict.fromkeys(options.codecs) for row in measure(options, codec)]
    output.say(table(rows))
    output.document({**described, "settings": asdict(options), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
