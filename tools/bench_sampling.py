"""Measures how far the gradient from sampled clips is from the full one, for each way to choose them.

All ways keep as many clips and run on the same network, videos and loss; the network is trained for some
steps on these videos before. The gradient is the encoder's, with encoder.gradient_scale inverse.
- factor: how long the mean gradient is along the full one. Adam does not mind it.
- bias, noise: of a step's gradient once the factor is taken out, as shares of the full gradient's norm. Noise
  averages out over steps, bias does not.
- cost: squared error (bias and noise of one step) times its seconds, where random is 1: less is better. On a
  CPU the seconds are the process's own, so that other processes count for less.
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
from tools.benchmarks.common import environment, header
from train.cli import Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.sampling import SamplingRow

HELP = """Measure the gradient of each encoder.clip_sampling against the full one, and say which is worth it.

Renders videos of the built-in kind, trains on them for some steps, then compares: the factor, bias and noise
of the encoder's gradient, the cosine with the full one, and the seconds of a step.
"""


SMALL_BIAS = 0.1  # of the noise: it takes a hundred steps until the noise has averaged out to as little


def random_of(rows: list[SamplingRow], ratio: float) -> SamplingRow:
    """The row of the random draw at this ratio."""
    return next(row for row in rows if row.ratio == ratio and row.strategy == "random")


def table(rows: list[SamplingRow]) -> str:
    """The rows as aligned text."""
    from tools.benchmarks.sampling import cost

    cells = [["strategy", "ratio", "clips", "factor", "bias", "noise", "cosine", "seconds", "cost"]]
    for row in rows:
        figures = [row.factor, row.bias, row.noise, row.cosine, row.seconds]
        texts = [f"{figure:.3f}" for figure in figures]
        relative = f"{cost(row, random_of(rows, row.ratio)):.2f}"
        cells.append([row.strategy, f"{row.ratio:g}", str(row.kept), *texts, relative])
    return columns(cells, "<>")


def verdict(rows: list[SamplingRow], ratio: float) -> str:
    """One line: which strategy is worth it at this ratio, and which has less error, but a bias."""
    from tools.benchmarks.sampling import cost

    random, here = random_of(rows, ratio), [row for row in rows if row.ratio == ratio]
    if random.error < 1e-3:  # rounding of float32
        return f"ratio {ratio:g}: all clips are kept, every strategy gives the full gradient"
    unbiased = [row for row in here if row is random or row.bias <= row.noise * SMALL_BIAS]
    best, least = (min(some, key=lambda row: cost(row, random)) for some in (unbiased, here))
    text = f"ratio {ratio:g}: "
    if best is random:
        text += "none without bias is worth more than random"
    else:
        text += f"{best.strategy} is worth most without bias: cost {cost(best, random):.2f} of random's"
    if least is not best:
        text += f"; {least.strategy} has less error in one step, cost {cost(least, random):.2f}, "
        text += f"but a bias of {least.bias:.2f}, which stays"
    return text


@click.command(
    cls=Command,
    help=HELP,
    epilog="Example: leantad bench-sampling --clips 32 --ratio 0.1 --ratio 0.3 --draws 50",
)
@click.option("--backbone", default="r2plus1d_tiny", help="A name of model/backbones.")
@click.option("--videos", type=click.IntRange(1), default=2, help="Videos of a step.")
@click.option("--clips", type=click.IntRange(1), default=16, help="Clips of a video.")
@click.option("--frames", type=click.IntRange(1), default=8, help="Frames of a clip.")
@click.option("--size", type=click.IntRange(8), default=32, help="Pixels of a side.")
@click.option(
    "--ratio",
    "ratios",
    type=float,
    multiple=True,
    default=(0.3,),
    help="Share of the clips with a gradient; repeatable.",
)
@click.option("--draws", type=click.IntRange(2), default=20, help="Steps of each way.")
@click.option("--steps", type=click.IntRange(0), default=10, help="Training steps before.")
@click.option("--clips-per-forward", type=click.IntRange(1), default=8, help="Clips encoded at once.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of weights and videos.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@document_options
def main(*, device: str, output: Output, **values: Any) -> None:
    from tools.benchmarks.sampling import STRATEGIES, Reference, SamplingOptions, cost, measure
    from train.build_network import resolve_device

    options = SamplingOptions(device=resolve_device(device, where="--device").type, **values)
    options.check()
    described = environment(options.device)
    output.say(header({**described, **asdict(options)}))
    reference = Reference.of(options)
    rows = [measure(options, reference, name, ratio) for ratio in options.ratios for name in STRATEGIES]
    output.say(table(rows))
    verdicts = [verdict(rows, ratio) for ratio in options.ratios]
    output.say("\n".join(verdicts))
    document = {
        **described,
        "settings": asdict(options),
        "rows": [{**asdict(row), "cost": round(cost(row, random_of(rows, row.ratio)), 4)} for row in rows],
        "verdicts": verdicts,
    }
    output.document(document)


if __name__ == "__main__":
    main()
