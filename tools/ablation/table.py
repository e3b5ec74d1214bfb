"""The table of a study: one row for each combination of settings, over its seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.text import columns
from tools.ablation.grid import PlannedRun, value_text
from tools.ablation.runs import RunResult

Row = dict[str, Any]
MEASURES = ("mAP_first", "average_mAP", "seconds", "memory_mib")


def mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and the standard deviation between seeds (n - 1); None where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def measured(result: RunResult) -> dict[str, float | None]:
    """MEASURES of a run; mAP_first: at the protocol's first tIoU."""
    metrics = result.metrics or {}
    return {
        "mAP_first": metrics["mAP"][0] if metrics else None,
        "average_mAP": metrics.get("average_mAP"),
        "seconds": result.seconds,
        "memory_mib": result.memory_mib,
    }


def rows_of(runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> list[Row]:
    """A row per combination, in the order of the grid: its settings, counts, mean and spread of each measure.

    results: by name of run; one that is missing has not ended.
    """
    by_variant: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    return [_row(group, results) for group in by_variant.values()]


def _row(group: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> Row:
    ended = [results[run.name] for run in group if run.name in results]
    complete = [result for result in ended if result.metrics is not None]
    row: Row = {
        "variant": group[0].variant,
        "settings": dict(group[0].values),
        "runs": len(group),
        "complete": len(complete),
        "failed": len(ended) - len(complete),
        "tiou_first": complete[0].metrics["tiou"][0] if complete and complete[0].metrics else None,
    }
    figures = [measured(result) for result in complete]
    for name in MEASURES:
        values = [value for figure in figures if (value := figure[name]) is not None]
        row[f"{name}_mean"], row[f"{name}_spread"] = mean_and_spread(values)
    return row


def cells_of(rows: Sequence[Row]) -> list[list[str]]:
    """Titles, then the rows, for people: mAP in percent, time in minutes, mean +- spread."""
    names = list(rows[0]["settings"])
    tious = {row["tiou_first"] for row in rows} - {None}
    first = f"mAP@{tious.pop():g} %" if len(tious) == 1 else "mAP@first %"
    cells = [[*(names or ["settings"]), "runs", first, "average mAP %", "training, minutes", "peak MiB"]]
    for row in rows:
        values = [value_text(row["settings"][name]) for name in names] or [row["variant"]]
        figures = [_figure(row, "mAP_first", 100, 1), _figure(row, "average_mAP", 100, 1)]
        figures += [_figure(row, "seconds", 1 / 60, 1), _figure(row, "memory_mib", 1, 0)]
        cells.append([*values, _count(row), *figures])
    return cells


def _count(row: Row) -> str:
    failed = f", {row['failed']} failed" if row["failed"] else ""
    of = f" of {row['runs']}" if row["complete"] < row["runs"] else ""
    return f"{row['complete']}{of}{failed}"


def _figure(row: Row, name: str, scale: float, digits: int) -> str:
    mean, spread = row[f"{name}_mean"], row[f"{name}_spread"]
    if mean is None:
        return "-"
    return f"{scale * mean:.{digits}f}" + ("" if spread is None else f" +- {scale * spread:.{digits}f}")


def text_table(rows: Sequence[Row]) -> str:
    """For the terminal."""
    return columns(cells_of(rows))


def markdown_table(rows: Sequence[Row]) -> str:
    """For a page; a | in a value would end its cell."""
    titles, *body = [[cell.replace("|", "\\|") for cell in line] for line in cells_of(rows)]
    lines = [titles, ["---"] * len(titles), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(rows: Sequence[Row]) -> str:
    """For programs: numbers as they are, mAP from 0 to 1, seconds, MiB; empty where there is none."""
    names = list(rows[0]["settings"])
    figures = [name for name in rows[0] if name not in ("variant", "settings")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *figures])
    for row in rows:
        writer.writerow([*(value_text(row["settings"][n]) for n in names), *(row[f] for f in figures)])
    return text.getvalue()
