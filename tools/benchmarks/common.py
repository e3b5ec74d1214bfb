"""Options that the benchmarks of backbones share, and what their figures depend on besides."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.text import suggestion

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def clip_options(function: Decorated) -> Decorated:
    """Click decorator: adds --clip and --device (arguments `clip`, `device`), see parse_clip."""
    clip = click.option("--clip", default="3x16x112x112", help="CxLxHxW: channels, frames, pixels.")
    device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
    return clip(device(function))


def source_options(*, count: int, seconds: float) -> Callable[[Decorated], Decorated]:
    """Click decorator: adds --videos, --codec (argument `codecs`), --count and --seconds."""
    options = [
        click.option(
            "--videos",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="A folder of video files [default: built-in ones].",
        ),
        click.option(
            "--codec",
            "codecs",
            type=click.Choice(["h264", "vp9"]),
            multiple=True,
            default=["h264", "vp9"],
            help="They are packed in; repeatable.",
        ),
        click.option("--count", type=click.IntRange(1), default=count, help="Videos, at most."),
        click.option(
            "--seconds", type=click.FloatRange(1, max=3600), default=seconds, help="Of a built-in video."
        ),
    ]

    def decorate(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def parse_sizes(text: str) -> list[int]:
    """ "2x3x224x224" -> [2, 3, 224, 224]; [] if it is anything but numbers of at least 1."""
    parts = text.lower().split("x")
    is_sizes = all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)
    return [int(part) for part in parts] if is_sizes else []


def parse_clip(text: str) -> tuple[int, int, int, int]:
    """ "3x16x112x112" -> (3, 16, 112, 112); raises ValueError otherwise."""
    sizes = parse_sizes(text)
    if len(sizes) != 4:
        raise ValueError(
            f"--clip: got {text!r}, want CxLxHxW (channels, frames, height, width) as 3x16x112x112"
        )
    channels, frames, height, width = sizes
    if not text.lower().startswith("3x"):
        raise ValueError(f"--clip: got {channels} channels in {text!r}, want 3: the backbones take RGB")
    return channels, frames, height, width


def check_backbone(name: str) -> None:
    """ValueError for a name that no backbone can have, before anything is measured."""
    from model.backbones import BACKBONES  # not for --help
    from model.backbones.libraries import FOREIGN, is_foreign_name

    if name not in BACKBONES and not is_foreign_name(name):
        raise ValueError(f"--backbone: got {name!r}; {suggestion(name, BACKBONES)}; or {FOREIGN}")


def environment(device: str) -> dict[str, str]:
    """What the figures depend on besides the options: hardware, version of torch, commit of this checkout."""
    import torch  # not for --help

    cuda = device == "cuda"
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {"hardware": hardware, "torch": torch.__version__, "commit": _commit()}


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_clock() -> float:
    """CPU seconds so far, of this process and of those that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def figure(value: float | None, layout: str) -> str:
    """A cell of a table; a dash for what was not measured."""
    return "-" if value is None else format(value, layout)


def header(values: dict[str, Any]) -> str:
    """`name=value` of each, on one line: what stands above a benchmark's table."""
    return " ".join(f"{name}={value}" for name, value in values.items())
