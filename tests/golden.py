"""Compares this project with the reference outputs in a folder: `python tests/golden.py FOLDER`.

FOLDER holds one folder per fixture: meta.json with the configuration, data.safetensors with inputs and
outputs, weights.safetensors. Beside them, or in a folder `weights` of FOLDER or next to it, may lie
i3d_golden.safetensors and efficientnet_lite0_golden.safetensors (which wants timm) with their weights. Prints
a line each, with its largest relative error; exit code 1 if one of them fails, or there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden_authors import check_authors
from golden_check import Check
from golden_efficientnet import GOLDEN as EFFICIENTNET
from golden_efficientnet import check_efficientnet
from golden_etad import check_etad
from golden_i3d import GOLDEN as I3D
from golden_i3d import check_i3d
from golden_opentad import check_opentad

from model.backbones.libraries import missing_library

Runner = Callable[[Path], Iterator[Check]]


@dataclass(frozen=True)
class Result:
    """What became of a fixture: a line for a person, and whether it is as the reference has it."""

    name: str
    passed: bool | None  # None: a library is missing that it needs
    text: str


def runner_of(folder: Path) -> Runner | str:
    """What checks this fixture, or why nothing does."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    config = meta.get("config", {})
    if config.get("backbone_type") == "convTransformer":
        return check_authors
    if config.get("type") == "ActionFormer":
        return check_opentad
    if {"tscale", "dscale", "stage_iou"} <= set(config):
        return check_etad
    return f"no such detector yet: {config.get('type', 'a configuration of no kind that is known')}"


def run(name: str, folder: Path, runner: Runner) -> Result:
    """All checks of one fixture."""
    try:
        checks = list(runner(folder))
    except Exception as error:  # a fixture that cannot be run is one line, too; the others go on
        return Result(name, False, f"cannot be run: {type(error).__name__}: {str(error).splitlines()[0]}")
    failed = [check for check in checks if not check.passed]
    worst = max(failed or checks, key=lambda check: check.error / check.tolerance)
    text = f"{len(checks)} values, largest relative error {max(check.error for check in checks):.1e}"
    if failed:
        return Result(name, False, f"{text}; {len(failed)} too large, the worst {worst}")
    return Result(name, True, f"{text}, nearest to its limit {worst}")


def results(root: Path) -> Iterator[Result]:
    """The fixtures below `root`, and those of pretrained weights that are there."""
    for meta in sorted(root.glob("*/meta.json")):
        folder = meta.parent
        try:
            runner = runner_of(folder)
        except (ValueError, AttributeError) as error:
            runner = f"meta.json cannot be read: {error}"
        if isinstance(runner, str):
            yield Result(folder.name, False, runner)
        else:
            yield run(folder.name, folder, runner)
    folders = (root, root / "weights", root.parent / "weights")
    for name, file, check in (
        ("i3d", I3D, check_i3d),
        ("efficientnet_lite0", EFFICIENTNET, check_efficientnet),
    ):
        folder = next((each for each in folders if (each / file).is_file()), None)
        if folder is None:
            continue
        missing = missing_library("timm") if check is check_efficientnet else None
        yield run(name, folder, check) if missing is None else Result(name, None, missing)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python tests/golden.py FOLDER, a folder of fixtures", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed, count = 0, 0
    for result in results(Path(arguments[0])):
        word = {True: "OK", False: "FAILED", None: "NOT RUN"}[result.passed]
        print(f"{word:7} {result.name}: {result.text}", flush=True)
        failed, count = failed + (result.passed is False), count + 1
    if not count:
        print(f"{arguments[0]}: no fixture in it, want folders with a meta.json", file=sys.stderr)
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
