"""The table that `leantad gpu-check` ends with: on which machine, in which state of the code, what held."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tools.gpu_checks.rows import Row
from tools.machine.checks import ROOT

PACKAGES = ("torch", "nvidia-dali-cuda130", "deepspeed", "av")


def first_line(*command: str) -> str:
    """The first line that a program prints; "unknown" if it prints none, is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def package_version(name: str) -> str:
    """The installed version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def machine_of(device: str) -> dict[str, str]:
    """What the figures hold for: GPU, driver, versions and commit."""
    gpu = ["unknown", "unknown"]
    if device != "cpu":
        query = "--query-gpu=name,driver_version"
        gpu = (first_line("nvidia-smi", query, "--format=csv,noheader", "-i", "0") + ", unknown").split(", ")
    changed = "" if first_line("git", "status", "--porcelain") == "unknown" else ", with changes"
    return {
        "GPU": "none: a rehearsal on the CPU" if device == "cpu" else gpu[0],
        "driver": gpu[1],
        "Python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "commit": first_line("git", "rev-parse", "--short", "HEAD") + changed,
    }


def markdown(rows: Sequence[Row], machine: dict[str, str]) -> str:
    """The table as Markdown, under a line on the machine."""
    heading = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"{date.today()}: {heading}", "", "| row | | figures | s |", "| --- | --- | --- | ---: |"]
    lines += [
        f"| {row.name} | {row.state} | {row.figures.replace('|', '/')} | {row.seconds:.0f} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def document(rows: Sequence[Row], machine: dict[str, str]) -> dict[str, Any]:
    """The same for machines."""
    return {"date": str(date.today()), "machine": machine, "rows": [asdict(row) for row in rows]}
