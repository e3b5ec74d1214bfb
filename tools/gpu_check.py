"""`leantad gpu-check`: everything that only a GPU can prove, measured in minutes, as one table."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.files import write_json, write_text
from pipeline.text import counted
from tools.gpu_checks.rows import FAILED, GROUP_NAMES, NO_TIME, ROWS_FILE, SKIPPED, Row, read_rows
from tools.gpu_checks.table import document, machine_of, markdown
from train.cli import PATH, Command, Output, output_options

MACHINE_FILE, TABLE_FILE, DOCUMENT_FILE = "machine.json", "gpu-check.md", "gpu-check.json"


def find_device(rehearse: bool) -> str:
    """cuda, or cpu in a rehearsal; ValueError if there is no GPU."""
    import torch

    if rehearse:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU; leantad doctor says why, --rehearse tries the checks")
    return "cuda"


def prepare(folder: Path, machine: dict[str, str], output: Output) -> None:
    """Make the folder; rows that were measured on another machine or state of the code begin anew."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, known = folder / ROWS_FILE, folder / MACHINE_FILE
    if rows.exists():
        if not known.exists() or json.loads(known.read_text("utf-8")) != machine:
            output.remark(f"{folder}: rows of another machine or version are measured again")
            rows.unlink()
        else:
            output.remark(f"{folder}: rows that held are kept")
    write_json(known, machine)


def in_order(rows: dict[str, Row], names: list[str]) -> list[Row]:
    """The rows of these groups in the order of the table."""
    from tools.gpu_checks.groups import GROUPS, ROW_NAMES

    wanted = [row for name in names for row in GROUPS[name].checks]
    return [rows.get(name, Row(name, SKIPPED, NO_TIME)) for name in ROW_NAMES if name in wanted]


@click.command(cls=Command, epilog="Example: leantad gpu-check --out gpu-check")
@click.option("--out", type=PATH, default=Path("gpu-check"))
@click.option("--minutes", type=click.FloatRange(0.1), default=15.0, help="Stop after this.")
@click.option("--only", type=click.Choice(GROUP_NAMES), multiple=True, help="These rows only; repeatable.")
@click.option("--rehearse", is_flag=True, help="Try the checks themselves on the CPU, at the smallest sizes.")
@output_options
@click.pass_context
def main(
    ctx: click.Context, out: Path, minutes: float, only: tuple[str, ...], rehearse: bool, output: Output
) -> None:
    """Measure on this GPU what cannot be proven without one; ends with one table.

    Nothing is fetched. Rows that held are kept: the same command again measures those that failed or for
    which no time was left. In --out: the table as gpu-check.md and gpu-check.json, and each process's log.
    Exit code 0 if every row held or did not apply, 1 if one failed.
    """
    from tools.gpu_checks import process  # not for --help

    deadline = time.monotonic() + 60 * minutes
    device = find_device(rehearse)
    machine = machine_of(device)
    prepare(out, machine, output)
    names = list(only or GROUP_NAMES)
    known = read_rows(out / ROWS_FILE)

    def on_row(row: Row) -> None:
        known[row.name] = row
        output.say(f"{row.state:8}{row.name}: {row.figures}")

    beside = max(1, min(3, (os.cpu_count() or 1) // 4))
    process.run_all(names, out, device, deadline=deadline, beside=beside, on_row=on_row)
    rows = in_order(known, names)
    write_text(out / TABLE_FILE, markdown(rows, machine))
    write_json(out / DOCUMENT_FILE, document(rows, machine))
    failed = sum(row.state == FAILED for row in rows)
    output.say(f"{counted(failed, 'row')} of {len(rows)} failed; the table: {out / TABLE_FILE}")
    output.document(document(rows, machine))
    ctx.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
