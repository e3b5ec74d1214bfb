"""Measures the training memory of a backbone: plain, checkpointed and reversible, and with sampled clips.

What is counted, above the parameters, their gradients and the clips themselves:
- saved: the most bytes that autograd holds for the backward when a forward of the encoder ends, each storage
  once. It sees what an autograd.Function passes to save_for_backward, too. (A recomputed call that draws
  random numbers also keeps 5 KB of generator state, not counted; the R(2+1)D networks draw none.)
- peak: on a GPU torch.cuda.max_memory_allocated; on a CPU the most bytes in tensors alive at one time. A
  tensor that lives only inside one kernel is not seen on a CPU.
- seconds: forward and backward, once, after a first run, without the trackers.
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
from tools.benchmarks.common import clip_options, environment, header, parse_clip
from train.cli import Command, Output, document_options

if TYPE_CHECKING:
    from tools.benchmarks.memory import MemoryRow

HELP = """Measure the training memory of a backbone: plain, checkpointed and reversible.

Above the parameters, their gradients and the clips: what autograd keeps for the backward (saved), the most
alive at one time (peak), and the seconds of a forward and backward.
"""
DTYPES = ("float32", "bfloat16", "float16", "float64")


def table(rows: list[MemoryRow]) -> str:
    """The rows as aligned text."""
    cells = [["mode", "ratio", "saved MiB", "peak MiB", "seconds"]]
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:g}"
        figures = [f"{row.saved_mib:.1f}", f"{row.peak_mib:.1f}", f"{row.seconds:.2f}"]
        cells.append([row.mode, ratio, *figures])
    return columns(cells)


@click.command(
    cls=Command,
    help=HELP,
    epilog="Example: leantad bench-memory --backbone r2plus1d_18 --clip 3x16x112x112 --clips 8 --ratio 0.3",
)
@click.option(
    "--backbone", default="r2plus1d_34", help="A name of model/backbones; a wrong one gets the list."
)
@clip_options
@click.option("--dtype", type=click.Choice(DTYPES), default="float32")
@click.option("--clips", type=click.IntRange(1), default=1, help="Clips of the video.")
@click.option(
    "--ratio",
    "ratios",
    type=float,
    multiple=True,
    help="Share of the clips that get a gradient, through sampled encoding; repeatable. "
    "Without it all clips go through one ordinary graph.",
)
@click.option(
    "--clips-per-forward",
    type=click.IntRange(1),
    default=4,
    help="Clips that go through the backbone at once.",
)
@click.option("--beta", type=float, default=1.0, help="Coefficient of the reversible rows.")
@document_options
def main(*, clip: str, device: str, output: Output, **values: Any) -> None:
    from tools.benchmarks.memory import MODES, MemoryOptions, measure
    from train.build_network import resolve_device

    shape, chosen = parse_clip(clip), resolve_device(device, where="--device").type
    options = MemoryOptions(clip=shape, device=chosen, **values)
    options.check()
    described = environment(options.device)
    output.say(header({**described, **asdict(options)}))
    rows = [measure(options, mode, ratio) for ratio in options.ratios or (None,) for mode in MODES]
    output.say(table(rows))
    output.document({**described, "settings": asdict(options), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
