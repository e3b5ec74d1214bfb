"""Measures what packing costs: ours, a plain PyAV loop, FFmpeg's command line where it is installed.

All decode the same files, choose frames, scale and encode with the same settings, with one thread each. They
take turns, and the least of --repeats counts.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import columns
from tools.benchmarks.common import environment, figure, header, source_options
from train.cli import Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.pack import PackRow

HELP = """Measure what packing costs: ours, a plain PyAV loop, FFmpeg's command line.

The same files and encoder settings for all, one thread each. CPU seconds as multiples of ours: above 1, the
other one takes longer. Where no `ffmpeg` is installed its row has no figures.
"""
EXAMPLES = """
\b
Examples:
  leantad bench-pack
  leantad bench-pack --videos my_videos --count 3 --fps 0
"""


def table(rows: list[PackRow]) -> str:
    """The rows as aligned text; what was not measured is a dash."""
    cells = [["codec", "packer", "version", "frames", "kB", "CPU s", "x ours"]]
    for row in rows:
        figures = [(row.frames, "d"), (row.kilobytes, "d"), (row.cpu_seconds, ".2f"), (row.times_ours, ".2f")]
        shown = [figure(value, layout) for value, layout in figures]
        cells.append([row.codec, row.packer, row.version, *shown])
    return columns(cells, "<<<>>>>")


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@source_options(count=2, seconds=30.0)
@click.option("--fps", type=click.IntRange(0), default=15, help="Frames per second; 0 keeps.")
@click.option("--short-side", type=click.IntRange(16), default=128, help="Pixels.")
@click.option("--repeats", type=click.IntRange(1), default=3, help="Timed turns.")
@document_options
def main(*, fps: int, short_side: int, output: Output, **values: Any) -> None:
    from tools.benchmarks.pack import PackOptions, measure  # not for --help

    if short_side % 2:
        raise ValueError(f"--short-side: got {short_side}, want an even number of pixels")
    options = PackOptions(fps=Fraction(fps), short_side=short_side, **values)
    described, settings = environment("cpu"), {**asdict(options), "fps": fps}
    output.say(header({**described, **settings}))
    rows = [row for codec in dict.fromkeys(options.codecs) for row in measure(options, codec)]
    output.say(table(rows))
    output.document({**described, "settings": settings, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
