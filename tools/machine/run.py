"""Runs the checks of `leantad doctor`, those that load a large library in a process of their own.

A library that crashes or hangs then ends its own check only. The process writes its results, one JSON object
a line, into a file that is named on its command line: what libraries print is no result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from pipeline.temporary_folder import temporary_folder
from tools.machine import checks, libraries
from tools.machine.checks import BROKEN, ROOT, CheckResult, error_text
from tools.machine.decoders import check_decode

TIME_LIMIT = 120.0  # seconds a check may take in its process; all of them take about ten

# name -> (check, whether it runs in a process of its own)
CHECKS: dict[str, tuple[Callable[[], Iterator[CheckResult]], bool]] = {
    "python": (checks.check_python, False),
    "disk": (checks.check_disk, False),
    "versions": (checks.check_versions, False),
    "compiler": (checks.check_compiler, False),
    "torch": (libraries.check_torch, True),
    "nvdec": (checks.check_nvdec, False),
    "decode": (check_decode, True),
    "deepspeed": (libraries.check_deepspeed, True),
}


def run_check(name: str) -> Iterator[CheckResult]:
    """The results of one check. It raises nothing: what the check raises is a result, too."""
    _, in_own_process = CHECKS[name]
    yield from run_in_own_process(name) if in_own_process else run_here(name)


def run_here(name: str) -> Iterator[CheckResult]:
    """The results of one check in this process."""
    check, _ = CHECKS[name]
    try:
        yield from check()
    except Exception as error:  # such as an import that fails: it is what this command is for
        yield failed(name, error_text(error))


def run_in_own_process(name: str, *, time_limit: float = TIME_LIMIT) -> Iterator[CheckResult]:
    """The results of one check in a process of its own, and how that ended if it was not well.

    time_limit: seconds.
    """
    with temporary_folder() as folder:
        written, errors = folder / "results", folder / "stderr"
        command = [sys.executable, "-m", "tools.machine.run", name, str(written)]
        code: int | None = None
        with open(errors, "w") as stderr:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "TMPDIR": str(folder)},  # of compilers; it may be killed
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=time_limit,
                )
                code = done.returncode
            except subprocess.TimeoutExpired:
                pass
        for line in written.read_text().splitlines() if written.exists() else []:
            yield CheckResult(**json.loads(line))
        last_line = (errors.read_text(errors="replace").strip().splitlines() or ["nothing on stderr"])[-1]
    if code is None:
        yield failed(name, f"no answer within {time_limit:.0f} s")
    elif code:
        ending = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        yield failed(name, f"the process ended: {ending}; its last line: {last_line[:200]}")


def failed(name: str, reason: str) -> CheckResult:
    """The check itself could not be done."""
    todo = "install again: make setup (or pip install -c constraints.txt -e .)"
    return CheckResult(BROKEN, f"{name}: {reason}", todo)


def main(name: str, path: str) -> None:
    """In the process of one check: write each result as soon as it is there."""
    with open(path, "w") as file:
        for result in run_here(name):
            print(json.dumps(asdict(result)), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
