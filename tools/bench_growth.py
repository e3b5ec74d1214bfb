"""Measures by which power each command's cost grows with the videos, their length, classes and actions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.files import write_text
from pipeline.temporary_folder import temporary_folder
from pipeline.text import columns
from train.cli import PATH, Command, Output, document_options, exit_with

HELP = """Measure how the cost of packing, an epoch, eval, predict and mAP grows with a data set.

Along each axis (videos, their seconds, classes, actions of a video) the data set grows by the factors; each
command runs as a user starts it, and its CPU seconds are counted. The last column is p of a + b * factor^p:
1 grows with the data, 2 with its square, 0 not at all, or by less than a tenth or the noise, by which the two
best turns of a size differ. What is above --most is named, and the exit code is 1.
"""
EXAMPLES = """
\b
Examples:
  leantad bench-growth --plot growth.svg
  leantad bench-growth --axis actions --factors 1,4,16 --json
"""
AXES = ("videos", "seconds", "classes", "actions")


def parse_factors(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]: at least three, rising, from 1 on."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"got {text!r}, want whole numbers with commas, as 1,2,4,8")
    factors = [int(part) for part in parts]
    if len(factors) < 3 or factors[0] != 1 or factors != sorted(set(factors)):
        raise click.BadParameter(f"got {text!r}, want at least three rising numbers, the first of them 1")
    return factors


def table(rows: list[dict[str, Any]], factors: list[int]) -> str:
    """The rows as aligned text."""
    head = ["axis", "command", *(f"x{factor}, s" for factor in factors), "noise, s", "exponent"]
    cells = [
        [
            *(row["axis"], row["command"], *(f"{seconds:.2f}" for seconds in row["seconds"])),
            *(f"{row['noise']:.2f}", f"{row['exponent']:.2f}"),
        ]
        for row in rows
    ]
    return columns([head, *cells], "<<" + ">" * (len(factors) + 2))


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.option("--axis", "axes", multiple=True, type=click.Choice(AXES), help="Repeatable. Default: all.")
@click.option("--factors", default="1,2,4,8", callback=parse_factors)
@click.option("--most", type=click.FloatRange(0), default=1.1, help="Largest exponent.")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, help="Turns over all sizes; the least of each counts."
)
@click.option("--plot", "plot_file", type=PATH, help="Write an SVG of the costs.")
@document_options
@click.pass_context
def main(
    ctx: click.Context,
    *,
    axes: tuple[str, ...],
    factors: list[int],
    most: float,
    repeats: int,
    plot_file: Path | None,
    output: Output,
) -> None:
    from tools.benchmarks.growth import JOBS, Sizes, costs, costs_of_jobs, exponent  # not for --help
    from tools.benchmarks.growth_plot import plot

    base = Sizes()
    rows: list[dict[str, Any]] = []
    for axis in axes or AXES:
        sizes, total = [base.times(axis, factor) for factor in factors], repeats * len(factors) * len(JOBS)
        with temporary_folder() as folder:
            timings = output.progress(costs(folder, sizes, repeats), axis, unit="command", total=total)
            found = costs_of_jobs(timings, len(sizes))
        rows += [
            {
                "axis": axis,
                "command": job,
                "seconds": [round(seconds, 3) for seconds in cost.seconds],
                "noise": round(cost.noise, 3),
                "exponent": exponent(factors, cost.seconds, cost.noise),
            }
            for job, cost in found.items()
        ]
    output.say(table(rows, factors))
    if plot_file is not None:
        write_text(plot_file, plot(rows, factors))
    output.document({"base": asdict(base), "factors": factors, "rows": rows})
    steep = [row for row in rows if row["exponent"] > most]
    exit_with(
        ctx, [f"{row['command']} grows with the {row['axis']} to the {row['exponent']}" for row in steep]
    )


if __name__ == "__main__":
    main()
