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

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.files import write_text
from train.cli import Command, Output, check_new_file, force_option, output_options

HELP = """Measure the training memory of a backbone: plain, checkpointed and reversible.

Above the parameters, their gradients and the clips: what autograd keeps for the backward (saved), the most
alive at one time (peak), and the seconds of a forward and backward.
"""
DTYPES = ("float32", "bfloat16", "float16", "float64")


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def where(device: str) -> dict:
    """What the figures depend on besides the settings."""
    import torch

    cuda = device == "cuda"
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {"hardware": hardware, "torch": torch.__version__, "commit": _commit()}


def table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    lines = [f"{'mode':<12}{'ratio':>6}{'saved MiB':>12}{'peak MiB':>12}{'seconds':>10}"]
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:g}"
        figures = f"{row['saved_mib']:>12.1f}{row['peak_mib']:>12.1f}{row['seconds']:>10.2f}"
        lines.append(f"{row['mode']:<12}{ratio:>6}{figures}")
    return "\n".join(lines)


def parse_clip(text: str) -> tuple[int, int, int, int]:
    """ "3x16x112x112" -> (3, 16, 112, 112); raises ValueError otherwise."""
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--clip: got {text!r}, want CxLxHxW (channels, frames, height, width) as 3x16x112x112"
        )
    if parts[0] != "3":
        raise ValueError(f"--clip: got {parts[0]} channels in {text!r}, want 3: the backbones take RGB")
    channels, frames, height, width = (int(part) for part in parts)
    return channels, frames, height, width


def resolve_device(name: str) -> str:
    """`auto` is cuda where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: got cuda, but torch sees no GPU; want cpu or auto")
    return name


@click.command(
    cls=Command,
    help=HELP,
    epilog="Example: leantad bench-memory --backbone r2plus1d_18 --clip 3x16x112x112 --clips 8 --ratio 0.3",
)
@click.option(
    "--backbone",
    default="r2plus1d_34",
    show_default=True,
    help="A name of model/backbones; a wrong one gets the list.",
)
@click.option("--clip", default="3x16x112x112", show_default=True, help="CxLxHxW: channels, frames, pixels.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--clips", type=click.IntRange(1), default=1, show_default=True, help="Clips of the video.")
@click.option(
    "--ratio",
    "ratios",
    type=float,
    multiple=True,
    help="Share of the clips that get a gradient, through sampled encoding; repeatable. "
    "Without it all clips go through one ordinary graph.",
)
@click.option("--piece", type=click.IntRange(1), default=4, show_default=True, help="Clips encoded at once.")
@click.option(
    "--beta", type=float, default=1.0, show_default=True, help="Coefficient of the reversible rows."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document to this file, too.")
@force_option
@output_options
def command(
    backbone: str,
    clip: str,
    dtype: str,
    clips: int,
    ratios: tuple[float, ...],
    piece: int,
    beta: float,
    device: str,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from tools.benchmarks.memory import MODES, Settings, check, measure

    output = Output(quiet, as_json)
    settings = Settings(backbone, parse_clip(clip), dtype, clips, ratios, piece, beta, resolve_device(device))
    check(settings)
    if out is not None:
        check_new_file(out, force=force)
    facts = where(settings.device)
    output.say(" ".join(f"{name}={value}" for name, value in {**facts, **asdict(settings)}.items()))
    rows = [measure(settings, mode, ratio) for ratio in ratios or (None,) for mode in MODES]
    output.say(table(rows))
    document = {**facts, "settings": asdict(settings), "rows": rows}
    output.document(document)
    if out is not None:
        write_text(out, json.dumps(document, indent=2) + "\n")


main = command

if __name__ == "__main__":
    main()
