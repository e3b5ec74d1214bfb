"""Runs groups of checks, each in a process of its own: a crash or a hang ends its own rows only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tools.gpu_checks.groups import GROUPS
from tools.gpu_checks.rows import (
    FAILED,
    NO_TIME,
    OK,
    ROWS_FILE,
    SKIPPED,
    CheckContext,
    Row,
    append_row,
    read_rows,
    run_row,
)
from tools.machine.checks import ROOT


def open_names(group: str, rows: dict[str, Row]) -> list[str]:
    """The group's rows that are still to be measured: all but those that held."""
    return [name for name in GROUPS[group].checks if name not in rows or rows[name].state != OK]


def run_all(
    names: Sequence[str],
    folder: Path,
    device: str,
    *,
    deadline: float,
    beside: int,
    on_row: Callable[[Row], None],
) -> None:
    """Run the groups `names`: first those that may run beside each other, then one by one those that may not.

    deadline: on time.monotonic's clock. beside: how many at once. on_row: called with each row once known.
    """

    cores = os.cpu_count() or 1

    def run(name: str) -> None:
        # threads of several processes that outnumber the cores spin: some ten times slower
        threads = cores if GROUPS[name].alone else max(1, cores // beside)
        for row in run_group(name, folder, device, deadline=deadline, threads=threads):
            on_row(row)

    with ThreadPoolExecutor(beside) as pool:
        list(pool.map(run, [name for name in names if not GROUPS[name].alone]))
    for name in names:
        if GROUPS[name].alone:
            run(name)


def run_group(name: str, folder: Path, device: str, *, deadline: float, threads: int) -> list[Row]:
    """The rows of a group that were still open, all of them: what did not get so far says why."""
    path = folder / ROWS_FILE
    wanted = open_names(name, read_rows(path))
    limit = min(GROUPS[name].limit, deadline - time.monotonic())
    if not wanted or limit <= 0:
        return [Row(row, SKIPPED, NO_TIME) for row in wanted]
    start = time.time()
    ending = run_process(name, folder, device, limit, threads=threads)
    rows = read_rows(path)
    fresh = [rows[row] for row in wanted if row in rows and rows[row].started >= start]
    missing = [row for row in wanted if row not in {row.name for row in fresh}]
    for number, row in enumerate(missing):
        # the process died in the first of them; the others are its victims
        text = ending if number == 0 else f"not reached: {ending}"
        fresh.append(Row(row, FAILED if number == 0 else SKIPPED, text))
    return fresh


def run_process(name: str, folder: Path, device: str, limit: float, *, threads: int) -> str:
    """Run the group's process for at most `limit` seconds; returns how it ended. threads: of torch."""
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "tools.gpu_checks.process", name, str(folder), device]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"took longer than {limit:.0f} s"
        finally:
            stop(process)
    ending = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing printed"])[-1]
    return f"the process ended: {ending}; its last line: {last[:200]}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(name: str, folder: str, device: str) -> None:
    """In the group's process: append each row as soon as it is there."""
    path = Path(folder) / ROWS_FILE
    for row in open_names(name, read_rows(path)):
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as files:
            append_row(path, run_row(row, GROUPS[name].checks[row], CheckContext(device, Path(files))))


if __name__ == "__main__":
    main(*sys.argv[1:])
