"""Shows what `rewire` makes of a network of another library: one line per module, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from tools.benchmarks.common import parse_sizes
from train.cli import Command, Output, document_options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.rewired_stage import Rewired

KINDS = ("reversible", "transition", "recomputed", "untouched")


def parse_shape(text: str) -> tuple[int, ...]:
    """ "2x3x224x224" -> (2, 3, 224, 224). ValueError otherwise."""
    sizes = parse_sizes(text)
    if len(sizes) < 2:
        raise ValueError(f"--input: got {text!r}, want the shape of one batch, as 2x3x224x224")
    return tuple(sizes)


def random_input(text: str | None) -> Tensor | None:
    """Numbers of a fixed seed in this shape; None for None."""
    import torch  # not for --help

    if text is None:
        return None
    return torch.randn(parse_shape(text), generator=torch.Generator().manual_seed(1))


def summary(rows: list[Rewired]) -> str:
    """How many modules became what."""
    counts = {kind: sum(row.kind == kind for row in rows) for kind in KINDS}
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)


@click.command(cls=Command, epilog="Example: leantad rewire timm:resnet50 --input 2x3x224x224")
@click.argument("name")
@click.option(
    "--input", "shape", help="Shape of one batch, as 2x3x224x224; by default one that the network accepts."
)
@document_options
def main(name: str, shape: str | None, output: Output) -> None:
    """Print what became of each module of a network, why, and the bytes it keeps, before and after.

    NAME is timm:NAME, torchvision:NAME, hf:FOLDER (with a config.json), hf:MODEL_TYPE or hf:CLASS. Nothing is
    downloaded: the weights are random, on which the result does not depend.
    """
    from model.rewire import describe  # not for --help
    from tools.benchmarks.libraries import build_network

    example = random_input(shape)
    with output.others_on_stderr():
        network = build_network(name)
        rows = _rewired(network, example, name)
    output.say(describe(rows))
    output.say(summary(rows))
    output.document({"network": name, "modules": [vars(row) for row in rows]})


def _rewired(network: nn.Module, example: Tensor | None, name: str) -> list[Rewired]:
    """What rewire returns. ValueError where it refuses, or the network does not take the input."""
    from model.rewire import rewire  # not for --help

    try:
        return rewire(network, example=example)
    except ValueError:
        raise
    except Exception as error:  # whatever a foreign network raises for an input that is none of its own
        raise ValueError(
            f"{name}: it does not run on --input ({' '.join(str(error).split())[:200]})"
        ) from error


if __name__ == "__main__":
    main()
