"""Doctor's findings and the GPU tests, each in a process of its own, as rows."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tools.gpu_checks.rows import CheckContext, SkipRow, require
from tools.machine.checks import BROKEN, ROOT
from tools.machine.run import CHECKS, run_check


def doctor(context: CheckContext) -> str:
    """All of doctor's checks."""
    results = [result for name in CHECKS for result in run_check(name)]
    broken = [result.text for result in results if result.state == BROKEN]
    return require(not broken, f"{len(results)} lines, broken: {'; '.join(broken) or 'none'}")


def gpu_tests(context: CheckContext) -> str:
    """The tests that need a GPU; without one they would be skipped, here that is a failure."""
    if not (ROOT / "tests").is_dir():
        raise SkipRow("no tests beside the packages: run it in a checkout")
    if context.rehearsal:
        raise SkipRow("a rehearsal has no GPU")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "LEANTAD_GPU": "1"}, capture_output=True, text=True
    )
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    failures = ", ".join(re.findall(r"^FAILED (\S+)", done.stdout, re.M))
    return require(done.returncode == 0, f"{last} {failures}".strip())
