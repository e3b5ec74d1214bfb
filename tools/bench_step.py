"""Measures a training step in each way to save memory: seconds, peak memory, and whether it is the same step.

- seconds: forward, backward and update under a DeepSpeed engine; in turns, the least of --repeats counts. On
  a CPU the seconds are the process's own, so that other processes count for less.
- peak: of forward and backward, above what is there between steps (weights, optimizer state, clips). On a
  GPU the allocator's; on a CPU the most bytes in tensors alive at one time. The update's is the same for all.
  "out of memory": what the GPU is too small for, plain at the shapes of the papers.
- loss off, gradient off: relative, of one step from the same weights, against ordinary autograd of the same
  function: the rewired network for the reversible modes, the same chosen clips for the sampled ones.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.files import write_text
from pipeline.text import columns
from tools.benchmarks.common import clip_options, environment, figure, header, parse_clip
from train.cli import PATH, Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.step import StepRow

HELP = """Measure a training step in each way to save memory, against plain in the same run.

Plain, blocks checkpointed, clips checkpointed, reversible (Re2TAL), sampled (ETAD), and both together:
seconds and peak memory as multiples of plain's, and how far loss and gradient are from ordinary autograd's.
"""
EXAMPLES = """
\b
Examples:
  leantad bench-step --backbone r2plus1d_tiny --clip 3x8x32x32
  leantad bench-step --backbone r2plus1d_34 --clip 3x16x112x112 --clips 128 --batch 4 --dtype bf16 --zero 1
"""


def table(rows: list[StepRow]) -> str:
    """The rows as aligned text; what was not measured is a dash."""
    head = ["device", "dtype", "ZeRO", "offload", "mode", "seconds", "x plain", "peak MiB", "x plain"]
    cells = [[*head, "loss off", "gradient off"]]
    for row in rows:
        setup = [row.device, row.dtype, str(row.zero), row.offload, row.mode]
        figures = [(row.seconds, ".2f"), (row.times_plain, ".2f"), (row.peak_mib, ".1f")]
        figures += [(row.peak_of_plain, ".3f"), (row.loss_off, ".1e"), (row.gradient_off, ".1e")]
        shown = [figure(value, layout) for value, layout in figures]
        cells.append([*setup, row.state or shown[0], *shown[1:]])
    return columns(cells, "<<<<<>")


def parse_choices(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a repeatable option, each once, in the order given."""
    return tuple(dict.fromkeys(values))


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.option("--backbone", default="r2plus1d_18", help="A name of model/backbones.")
@clip_options
@click.option("--clips", type=click.IntRange(1), default=10, help="Clips of a video.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Videos of a step.")
@click.option("--ratio", type=float, default=0.3, help="Share of clips with a gradient.")
@click.option(
    "--clips-per-forward",
    type=click.IntRange(1),
    default=1,
    help="Clips that go through the backbone at once.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["float32", "bf16"]),
    multiple=True,
    default=["float32"],
    callback=parse_choices,
    help="Of weights and activations; repeatable.",
)
@click.option(
    "--zero",
    type=click.Choice(["0", "1", "2", "3"]),
    multiple=True,
    default=["0"],
    callback=parse_choices,
    help="ZeRO stage; repeatable.",
)
@click.option(
    "--offload",
    type=click.Choice(["none", "optimizer", "all"]),
    multiple=True,
    default=["none"],
    callback=parse_choices,
    help="What lies in host memory: nothing, the optimizer's state (ZeRO 1 to 3), or the weights, too (ZeRO "
    "3); repeatable.",
)
@click.option("--repeats", type=click.IntRange(1), default=3, help="Timed turns.")
@click.option("--plot", "plot_file", type=PATH, help="Write an SVG of the ratios.")
@document_options
def main(
    *, clip: str, device: str, zero: tuple[str, ...], plot_file: Path | None, output: Output, **values: Any
) -> None:
    from tools.benchmarks.step import StepOptions, empty_rows, measure
    from tools.benchmarks.step_plot import plot
    from train.build_network import resolve_device

    shape, chosen = parse_clip(clip), resolve_device(device, where="--device").type
    options = StepOptions(clip=shape, device=chosen, zero=tuple(map(int, zero)), **values)
    options.check()
    setups = list(options.setups())
    if not setups:
        raise ValueError("--offload: got no setup, want optimizer with --zero 1, 2 or 3, all with --zero 3")
    described = environment(options.device)
    output.say(header({**described, **asdict(options)}))
    rows = [
        row for setup in output.progress(setups, "measuring", unit="setup") for row in measure(options, setup)
    ]
    if options.device == "cpu":
        rows += [row for setup in setups for row in empty_rows(setup)]
    output.say(table(rows))
    if plot_file is not None:
        write_text(plot_file, plot(rows))
    output.document({**described, "settings": asdict(options), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
