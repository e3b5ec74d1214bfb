"""`leantad doctor`: what this machine lacks for training, line by line, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import counted
from tools.machine.checks import BROKEN, WARNING
from tools.machine.run import CHECKS, run_check
from train.cli import Command, Output, output_options


def examine(names: Sequence[str], output: Output) -> list[dict[str, Any]]:
    """Do the checks, print each result as it comes; returns them all with the check's name."""
    results = []
    for name in names:
        for result in run_check(name):
            results.append({"check": name, **asdict(result)})
            output.say(f"{result.state:8}{result.text}")
            if result.todo:
                output.say(f"{'':8}-> {result.todo}")
    return results


@click.command(cls=Command, epilog="Example: leantad doctor --json > doctor.json")
@click.option(
    "--only", type=click.Choice(list(CHECKS)), multiple=True, help="Do this check only; repeatable."
)
@output_options
@click.pass_context
def main(ctx: click.Context, only: tuple[str, ...], output: Output) -> None:
    """Check Python, torch, GPU, video decoding, DeepSpeed, compiler and disk; say what to do.

    Exit code 0 if this machine can train (warnings allowed), 1 if something is broken.
    """
    results = examine(only or list(CHECKS), output)
    states = [item["state"] for item in results]
    broken, warnings = states.count(BROKEN), states.count(WARNING)
    verdict = f"{broken} broken" if broken else "this machine can train"
    output.say(f"{verdict}, {counted(warnings, 'warning')}, {counted(len(results), 'line')} in all")
    output.document({"can_train": not broken, "broken": broken, "warnings": warnings, "findings": results})
    ctx.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
