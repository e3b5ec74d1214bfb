"""A row of the table: what was checked, whether it holds, with which figures; and what a check is given."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

OK, FAILED, SKIPPED = "OK", "failed", "skipped"
ROWS_FILE = "rows.jsonl"
NO_TIME = "no time left; the same command again goes on here"
# Of tools/gpu_checks/groups.py, which imports all that it checks.
GROUP_NAMES = (
    "doctor",
    "decoding",
    "numerics",
    "engine",
    "resume",
    "demo",
    "tests",
    "memory-1",
    "memory-2",
    "memory-3",
    "memory-4",
    "speed",
    "soak",
)


@dataclass(frozen=True)
class Row:
    """One row. figures: what was measured, or why the check failed or was skipped; seconds: what it took."""

    name: str
    state: str
    figures: str
    seconds: float = 0.0
    started: float = 0.0  # seconds since the epoch


@dataclass(frozen=True)
class CheckContext:
    """What a check is given. rehearsal: a CPU stands in, at the smallest sizes."""

    device: str  # "cuda", or "cpu" in a rehearsal
    folder: Path  # for the check's files, empty at first

    @property
    def rehearsal(self) -> bool:
        """Whether nothing is measured in earnest."""
        return self.device == "cpu"


class SkipRow(Exception):
    """The check does not apply here; the message says why."""


Check = Callable[[CheckContext], str]  # returns the figures; raises if what it checks does not hold


def run_row(name: str, check: Check, context: CheckContext) -> Row:
    """Run one check, whatever it raises."""
    started = time.time()
    try:
        state, figures = OK, check(context)
    except SkipRow as reason:
        state, figures = SKIPPED, str(reason)
    except Exception as error:  # a crash of a library is what this command is for
        state, figures = FAILED, f"{type(error).__name__}: {error}"
    figures = " ".join(figures.split())[:500]
    return Row(name, state, figures, round(time.time() - started, 1), started)


def require(holds: bool, figures: str) -> str:
    """The figures; raises ValueError with them unless the check holds."""
    if not holds:
        raise ValueError(figures)
    return figures


def append_row(path: Path, row: Row) -> None:
    """Add a row to the file of rows: one JSON object a line, so that a killed run loses none before it."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of an earlier run by name; a line that a kill cut in half is left out."""
    rows: dict[str, Row] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError):
            continue
        rows[row.name] = row
    return rows
