"""Measures what rewiring a backbone costs: time against plain and checkpointed, and the error of gradients.

- time: forward and backward of the plain network, with every residual block checkpointed by torch (the stem
  is kept), and rewired; in turns, so that whatever else the machine does hits all three; the least of
  --repeats counts. On a CPU the seconds are the process's own, so that other processes count for less.
- error: of the reconstructed stage inputs and of all gradients (relative L2), against the same recurrence
  with every branch input kept. With drop-path on, batch norm with its stored statistics, as in training.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from torch import Tensor, nn

from model.backbones import BACKBONES
from model.backbones.backbone import Backbone
from model.rewire import reconstruction_error, rewired_stages
from model.rewire_backbone import rewire_backbone
from pipeline.text import columns
from tools.benchmarks.common import check_backbone, clip_options, environment, header, parse_clip
from tools.benchmarks.trained import build, checkpoint_blocks
from train.build_network import resolve_device
from train.cli import Command, Output, document_options

MODES = ("plain", "checkpoint", "reversible")
BETAS = ((1.0, True), (1.0, False), (0.9, False), (0.7, False))  # beta, fixed_point_states
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of the branches, under autocast


@dataclass(frozen=True)
class RewireOptions:
    """The options of the command: what is measured, and of what."""

    backbones: tuple[str, ...]
    clip: str
    device: str
    dtype: str
    repeats: int
    what: str

    def random_clip(self) -> Tensor:
        """(1, C, L, H, W) float32 of a fixed seed, on the device."""
        generator = torch.Generator().manual_seed(2)
        pixels = torch.randn(1, *parse_clip(self.clip), generator=generator)
        return pixels.to(resolve_device(self.device, where="--device"))


def build_mode(name: str, mode: str, device: str) -> Backbone:
    """The backbone in one of MODES."""
    network = build(name, device)
    if mode == "checkpoint":
        checkpoint_blocks(network)
    if mode == "reversible":
        rewire_backbone(network)
    return network


def step(network: Backbone, clip: Tensor, autocast: torch.dtype | None) -> None:
    """Forward and backward of a loss that weighs every feature differently, with the same drop-path."""
    network.zero_grad()
    torch.manual_seed(1)
    with torch.autocast(clip.device.type, dtype=autocast, enabled=autocast is not None):
        features = network.pool(network(clip)).float()
    factors = torch.linspace(-1, 1, features.numel(), device=clip.device).view_as(features)
    (features * factors).sum().backward()  # type: ignore[no-untyped-call]
    if clip.device.type == "cuda":
        torch.cuda.synchronize()


def least_seconds(name: str, clip: Tensor, autocast: torch.dtype | None, repeats: int) -> dict[str, float]:
    """The least time of a step in each of MODES."""
    networks = {mode: build_mode(name, mode, clip.device.type) for mode in MODES}
    least = dict.fromkeys(MODES, float("inf"))
    clock = time.process_time if clip.device.type == "cpu" else time.perf_counter
    for turn in range(repeats + 1):  # the first turn warms up
        for mode, network in networks.items():
            start = clock()
            step(network, clip, autocast)
            if turn:
                least[mode] = min(least[mode], clock() - start)
    return least


def time_row(name: str, clip: Tensor, dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds of the three modes, and the rewired network's time as a multiple of the others'."""
    taken = least_seconds(name, clip, DTYPES[dtype], repeats)
    reversible = taken["reversible"]
    return {
        "backbone": name,
        "dtype": dtype,
        **{f"{mode}_seconds": round(value, 3) for mode, value in taken.items()},
        "times_plain": round(reversible / taken["plain"], 3),
        "times_checkpoint": round(reversible / taken["checkpoint"], 3),
    }


def gradients(network: nn.Module) -> Tensor:
    """All of them in one vector, float64."""
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])


def error_rows(name: str, clip: Tensor, dtype: str) -> list[dict[str, Any]]:
    """For each of BETAS, with all stages inverted: their largest reconstruction error, the gradient's."""
    network, rows = build(name, clip.device.type), []
    rewire_backbone(network)
    for beta, fixed_point_states in BETAS:
        by_method = []
        for invert in (False, True):
            for stage in rewired_stages(network):
                stage.beta, stage.fixed_point_states, stage.invert = beta, fixed_point_states, invert
            step(network, clip, DTYPES[dtype])
            by_method.append(gradients(network))
        stored, inverted = by_method
        rows.append(
            {
                "backbone": name,
                "dtype": dtype,
                "beta": beta,
                "exact": fixed_point_states,
                "reconstruction_error": reconstruction_error(network),
                "gradient_error": float((inverted - stored).norm() / stored.norm()),
            }
        )
    return rows


def time_table(rows: list[dict[str, Any]]) -> str:
    """The rows of time_row as text."""
    cells = [["backbone", "dtype", "plain s", "checkpoint s", "reversible s", "x plain", "x checkpoint"]]
    for row in rows:
        figures = [row[f"{mode}_seconds"] for mode in MODES] + [row["times_plain"], row["times_checkpoint"]]
        cells.append([row["backbone"], row["dtype"], *(f"{figure:.2f}" for figure in figures)])
    return columns(cells, "<<>")


def error_table(rows: list[dict[str, Any]]) -> str:
    """The rows of error_rows as text."""
    cells = [["backbone", "dtype", "beta", "fixed point", "reconstruction", "gradient"]]
    for row in rows:
        errors = [f"{row['reconstruction_error']:.1e}", f"{row['gradient_error']:.1e}"]
        exact = "yes" if row["exact"] else "no"
        cells.append([row["backbone"], row["dtype"], f"{row['beta']:g}", exact, *errors])
    return columns(cells, "<<>")


@click.command(
    cls=Command,
    epilog="Example: leantad bench-rewire --backbone video_swin_t --clip 3x32x112x112 --repeats 5",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=["r2plus1d_34"],
    help=f"Repeatable: {', '.join(BACKBONES)}; or timm:NAME and the like.",
)
@clip_options
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32")
@click.option("--repeats", type=click.IntRange(1), default=3, help="Timed turns.")
@click.option("--what", type=click.Choice(["time", "error", "both"]), default="both")
@document_options
def main(output: Output, **values: Any) -> None:
    """Measure the time and the precision of rewired backbones. bfloat16 runs the branches under autocast."""
    options = RewireOptions(**values)
    for name in options.backbones:
        check_backbone(name)
    clip = options.random_clip()
    described = {**environment(clip.device.type), "clip": options.clip}
    output.say(header(described))
    times: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for name in options.backbones:
        if options.what != "error":
            times.append(time_row(name, clip, options.dtype, options.repeats))
        if options.what != "time":
            errors += error_rows(name, clip, options.dtype)
    for rows, table in ((times, time_table), (errors, error_table)):
        if rows:
            output.say(table(rows))
    output.document({**described, "times": times, "errors": errors})


if __name__ == "__main__":
    main()
