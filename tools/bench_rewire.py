"""Measures what rewiring a backbone costs: time against plain and checkpointed, and the error of gradients.

- time: forward and backward of the plain network, with every residual block checkpointed by torch (the stem
  is kept), and rewired; in turns, so that whatever else the machine does hits all three; the least of
  --repeats counts. On a CPU the seconds are the process's own, so that other processes count for less.
- error: of the reconstructed stage inputs and of all gradients (relative L2), against the same recurrence
  with every branch input kept. With drop-path on, batch norm with its stored statistics, as in training.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from model.backbones import BACKBONES, build_backbone
from model.rewire import reconstruction_error, rewire, rewired_stages
from pipeline.files import write_text
from tools.bench_memory import parse_clip, resolve_device, where
from tools.benchmarks.memory import check_backbone
from train.cli import Command, Output, check_new_file, force_option, output_options

MODES = ("plain", "checkpoint", "reversible")
BETAS = ((1.0, True), (1.0, False), (0.9, False), (0.7, False))  # beta, exact
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def build(name: str, device: str) -> nn.Module:
    """The backbone with weights of a fixed seed, training, but for the statistics of its batch norms.

    A norm that starts at weight 0, as at the end of SlowFast's branches, gets weight 1/2: its branch would
    be nothing, and reversed without error.
    """
    torch.manual_seed(0)
    network = build_backbone(name).to(device).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if not module.weight.any():
                nn.init.constant_(module.weight, 0.5)
    return network


def checkpoint_blocks(network: nn.Module) -> None:
    """Let torch recompute every residual block as a whole."""
    for name in network.stage_names:
        for block in network.get_submodule(name).children():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def build_mode(name: str, mode: str, device: str) -> nn.Module:
    """The backbone in one of MODES."""
    network = build(name, device)
    if mode == "checkpoint":
        checkpoint_blocks(network)
    if mode == "reversible":
        rewire(network)
    return network


def step(network: nn.Module, clip: Tensor, autocast: torch.dtype | None) -> None:
    """Forward and backward of a loss that weighs every feature differently, with the same drop-path."""
    network.zero_grad()
    torch.manual_seed(1)
    with torch.autocast(clip.device.type, dtype=autocast, enabled=autocast is not None):
        features = network.pool(network(clip)).float()
    (
        features * torch.linspace(-1, 1, features.numel(), device=clip.device).view_as(features)
    ).sum().backward()
    if clip.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(name: str, clip: Tensor, autocast: torch.dtype | None, repeats: int) -> dict[str, float]:
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
    taken = seconds(name, clip, DTYPES[dtype], repeats)
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
    rewire(network)
    for beta, fixed_point_states in BETAS:
        found = []
        for invert in (False, True):
            for stage in rewired_stages(network):
                stage.beta, stage.fixed_point_states, stage.invert = beta, fixed_point_states, invert
            step(network, clip, DTYPES[dtype])
            found.append(gradients(network))
        kept, inverted = found
        rows.append(
            {
                "backbone": name,
                "dtype": dtype,
                "beta": beta,
                "exact": fixed_point_states,
                "reconstruction_error": reconstruction_error(network),
                "gradient_error": float((inverted - kept).norm() / kept.norm()),
            }
        )
    return rows


def time_table(rows: list[dict[str, Any]]) -> str:
    """The rows of time_row as text."""
    lines = [
        f"{'backbone':<16}{'dtype':<10}{'plain s':>9}{'ckpt s':>9}{'rev s':>9}{'x plain':>9}{'x ckpt':>9}"
    ]
    for row in rows:
        figures = "".join(f"{row[f'{mode}_seconds']:>9.2f}" for mode in MODES)
        ratios = f"{row['times_plain']:>9.2f}{row['times_checkpoint']:>9.2f}"
        lines.append(f"{row['backbone']:<16}{row['dtype']:<10}{figures}{ratios}")
    return "\n".join(lines)


def error_table(rows: list[dict[str, Any]]) -> str:
    """The rows of error_rows as text."""
    lines = [
        f"{'backbone':<16}{'dtype':<10}{'beta':>6}{'fixed_point_states':>7}{'reconstruction':>16}{'gradient':>10}"
    ]
    for row in rows:
        errors = f"{row['reconstruction_error']:>16.1e}{row['gradient_error']:>10.1e}"
        fixed_point_states = "yes" if row["exact"] else "no"
        lines.append(
            f"{row['backbone']:<16}{row['dtype']:<10}{row['beta']:>6g}{fixed_point_states:>7}{errors}"
        )
    return "\n".join(lines)


@click.command(
    cls=Command,
    epilog="Example: leantad bench-rewire --backbone video_swin_t --clip 3x32x112x112 --repeats 5",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=["r2plus1d_34"],
    help=f"Repeatable: {', '.join(BACKBONES)}.",
)
@click.option("--clip", default="3x16x112x112", show_default=True, help="CxLxHxW: channels, frames, pixels.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Timed turns.")
@click.option("--what", type=click.Choice(["time", "error", "both"]), default="both", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document to this file, too.")
@force_option
@output_options
def main(
    backbones: tuple[str, ...],
    clip: str,
    dtype: str,
    repeats: int,
    what: str,
    device: str,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure the time and the precision of rewired backbones. bfloat16 runs the branches under autocast."""
    output = Output(quiet, as_json)
    if out is not None:
        check_new_file(out, force=force)
    for name in backbones:  # a wrong name must not cost a run
        check_backbone(name)
    facts = where(resolve_device(device))
    shape = parse_clip(clip)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(1, *shape, generator=generator).to(resolve_device(device))
    output.say(" ".join(f"{key}={value}" for key, value in {**facts, "clip": clip}.items()))
    times: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for name in backbones:
        if what != "error":
            times.append(time_row(name, pixels, dtype, repeats))
        if what != "time":
            errors += error_rows(name, pixels, dtype)
    for rows, table in ((times, time_table), (errors, error_table)):
        if rows:
            output.say(table(rows))
    document = {**facts, "clip": clip, "times": times, "errors": errors}
    output.document(document)
    if out is not None:
        write_text(out, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
