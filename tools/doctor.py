"""`leantad doctor`: what this machine lacks for training, line by line, with the way out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from tools.machine import checks as checks
from tools.machine.checks import BROKEN, ROOT, WARNING, Finding, words
from tools.machine.decoders import check_decode
from train.cli import Command, Output, output_options

MARK = "@finding "  # before a child's lines: what libraries print on stdout is not a finding
TIME_LIMIT = 120.0  # seconds a check may take; all of them take about ten

# name -> (check, whether it runs in a process of its own)
CHECKS: dict[str, tuple[Callable[[], Iterator[Finding]], bool]] = {
    "python": (checks.check_python, False),
    "disk": (checks.check_disk, False),
    "versions": (checks.check_versions, False),
    "compiler": (checks.check_compiler, False),
    "torch": (checks.check_torch, True),
    "nvdec": (checks.check_nvdec, False),
    "decode": (check_decode, True),
    "deepspeed": (checks.check_deepspeed, True),
}


def findings_of(name: str) -> Iterator[Finding]:
    """What one check finds; whatever it raises is a finding, too, and never an error of ours."""
    check, own_process = CHECKS[name]
    try:
        yield from in_process(name) if own_process else check()
    except Exception as error:  # that is what this command is for
        yield failed(name, words(error))


def failed(name: str, reason: str) -> Finding:
    """The check itself could not be done."""
    return Finding(
        BROKEN, f"{name}: {reason}", "install again: make setup (or pip install -c constraints.txt -e .)"
    )


def in_process(name: str, *, time_limit: float = TIME_LIMIT) -> Iterator[Finding]:
    """Run one check in a process of its own and hand on its findings as they come."""
    code = "import sys; from tools.doctor import child; child(sys.argv[1])"
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        )
        timer = threading.Timer(time_limit, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    yield Finding(**json.loads(line.removeprefix(MARK)))
            code_of_exit = process.wait()
            timed_out = not timer.is_alive()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["nothing said"])[-1]
    if timed_out:
        yield failed(name, f"no answer within {time_limit:.0f} s")
    elif code_of_exit:
        how = signal.strsignal(-code_of_exit) if code_of_exit < 0 else f"exit code {code_of_exit}"
        yield failed(name, f"the process ended: {how}; its last words: {last[:200]}")


def child(name: str) -> None:
    """In the process of one check: print its findings, each a marked line of JSON."""
    check, _ = CHECKS[name]
    try:
        for finding in check():
            print(MARK + json.dumps(asdict(finding)), flush=True)
    except Exception as error:  # an import that fails, for one; the parent prints it
        print(MARK + json.dumps(asdict(failed(name, words(error)))), flush=True)


def examine(names: Sequence[str], output: Output) -> list[dict[str, Any]]:
    """Do the checks, print each finding as it comes; returns them all with the check's name."""
    found = []
    for name in names:
        for finding in findings_of(name):
            found.append({"check": name, **asdict(finding)})
            output.say(f"{finding.state:8}{finding.text}")
            if finding.todo:
                output.say(f"{'':8}-> {finding.todo}")
    return found


@click.command(cls=Command, epilog="Example: leantad doctor --json > doctor.json")
@click.option(
    "--only", type=click.Choice(list(CHECKS)), multiple=True, help="Do this check only; repeatable."
)
@output_options
def main(only: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Check Python, torch, GPU, video decoding, DeepSpeed, compiler and disk; say what to do.

    Exit code 0 if this machine can train (warnings allowed), 1 if something is broken.
    """
    output = Output(quiet, as_json)
    found = examine(only or list(CHECKS), output)
    states = [item["state"] for item in found]
    broken, warned = states.count(BROKEN), states.count(WARNING)
    verdict = f"{broken} broken" if broken else "this machine can train"
    output.say(f"{verdict}, {warned} warning{'s' * (warned != 1)}, {len(found)} lines in all")
    output.document({"can_train": not broken, "broken": broken, "warnings": warned, "findings": found})
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
