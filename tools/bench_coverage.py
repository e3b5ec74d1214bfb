"""Measures how much of other libraries' networks `rewire` makes reversible, and whether that is right.

One network of each family that timm, torchvision and transformers offer, with random weights and small
inputs, each in a process of its own: one that crashes or hangs is a row with its reason.

- blocks: modules that add to what they depend on, counted in a run of the plain network, without `rewire`.
- saved: what autograd keeps for the backward pass, plain, and rewired at beta 1.
- beta 0: the largest difference to the plain network, in training and evaluation, for inputs of two sizes.
- gradient: relative L2 error at beta 1 against plain autograd of the same recurrence, in float32 and float64.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from model.backbones.libraries import LIBRARIES, missing_library
from pipeline.text import columns, suggestion
from tools.benchmarks.common import environment, figure, header
from tools.benchmarks.coverage import CoverageRow
from tools.benchmarks.networks import ForeignNetwork, known_networks
from train.cli import Command, Output, document_options

ENOUGH = 0.95  # of a network's residual blocks
HEADINGS = ["family", "network", "blocks", "rewired", "saved MiB", "rewired MiB", "beta 0", "gradient"]
HEADINGS += ["in float64", "s", "why not more"]


@dataclass(frozen=True)
class CoverageOptions:
    """The options of the command."""

    libraries: tuple[str, ...]
    networks: tuple[str, ...]
    timeout: float
    rows: Path | None

    def chosen(self) -> list[ForeignNetwork]:
        """The networks to measure. ValueError for a name that the table does not have."""
        known = known_networks()
        for name in self.networks:
            if name not in (names := [one.name for one in known]):
                raise ValueError(f"--network: got {name!r}; {suggestion(name, names)}")
        if self.networks:
            return [one for one in known if one.name in self.networks]
        return [one for one in known if one.name.partition(":")[0] in (self.libraries or LIBRARIES)]


def measured_apart(one: ForeignNetwork, timeout: float) -> CoverageRow:
    """The row of one network, from a process of its own, which is ended after `timeout` seconds."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tools.benchmarks.coverage", one.name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**os.environ, "PYTHONPATH": path}
        )
    except subprocess.TimeoutExpired:
        return CoverageRow(one.name, one.family, error=f"not done after {timeout:g} s (--timeout)")
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:120]
        return CoverageRow(one.name, one.family, error=f"ended with code {done.returncode}: {message}")
    return CoverageRow(**json.loads(done.stdout.strip().splitlines()[-1]))


def read_rows(path: Path | None) -> dict[str, CoverageRow]:
    """The rows that an earlier run left, by network; a last line that is cut off is left out."""
    found: dict[str, CoverageRow] = {}
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = CoverageRow(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is no row of bench-coverage; another file?") from error
        found[row.network] = row
    return found


def _append(path: Path, text: str) -> None:
    """Add a line, in the place of one that was cut off, if the file ends with one."""
    with path.open("a+b") as file:
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(f"{text}\n".encode())


def cells(row: CoverageRow) -> list[str]:
    """One line of the table."""
    why = row.error or "; ".join(f"{n} x {text}" for text, n in Counter(row.refused.values()).most_common(2))
    return [
        *(row.family, row.network, str(row.blocks), figure(row.share, ".0%")),
        *(figure(row.plain_mib, ".2f"), figure(row.rewired_mib, ".2f"), figure(row.beta_0_difference, ".0g")),
        *(figure(row.gradient_error, ".0e"), figure(row.gradient_error_64, ".0e"), f"{row.seconds:.1f}"),
        why.replace("|", "/"),
    ]


def table(rows: list[CoverageRow], *, markdown: bool) -> str:
    """All rows as text, in columns or as Markdown."""
    lines = [HEADINGS, *map(cells, rows)]
    if not markdown:
        return columns(lines, "<<>>>>>>>><")
    with_rule = [lines[0], ["---"] * len(HEADINGS), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in with_rule)


def summary(rows: list[CoverageRow]) -> dict[str, Any]:
    """How many networks have enough of their blocks rewired, and the worst figures."""
    with_blocks = [row for row in rows if row.blocks or row.error]
    enough = [row for row in with_blocks if not row.error and (row.share or 0) >= ENOUGH]
    differences = [r.beta_0_difference for r in rows if r.beta_0_difference is not None]
    return {
        "networks": len(with_blocks),
        "enough": len(enough),
        "largest_beta_0_difference": max(differences, default=None),
    }


def summary_line(values: dict[str, Any]) -> str:
    """The summary for people."""
    worst = values["largest_beta_0_difference"]
    return (
        f"{values['enough']} of {values['networks']} networks have at least {ENOUGH:.0%} of their residual "
        f"blocks rewired; largest difference at beta 0: {'-' if worst is None else f'{worst:g}'}"
    )


def _measure_all(options: CoverageOptions, output: Output) -> list[CoverageRow]:
    done, rows, chosen = read_rows(options.rows), [], options.chosen()
    missing = {prefix: missing_library(prefix) for prefix in {one.name.partition(":")[0] for one in chosen}}
    for _, reason in sorted(missing.items()):
        if reason:
            output.warn(f"{reason}: its networks are left out")
    able = [one for one in chosen if not missing[one.name.partition(":")[0]]]
    if not able:
        raise ValueError("nothing to measure: install timm, torchvision or transformers")
    if kept := [one.name for one in able if one.name in done]:
        output.remark(
            f"{options.rows}: {len(kept)} networks are done already; remove the file to repeat them"
        )
    for one in output.progress(able, "measuring", unit="network"):
        if one.name not in done:
            done[one.name] = measured_apart(one, options.timeout)
            if options.rows is not None:
                _append(options.rows, json.dumps(vars(done[one.name])))
        rows.append(done[one.name])
    return rows


@click.command(
    cls=Command,
    epilog="Example: leantad bench-coverage --library timm --rows coverage.jsonl --markdown",
    interrupted="with --rows the same command continues",
)
@click.option(
    "--library",
    "libraries",
    multiple=True,
    type=click.Choice(list(LIBRARIES)),
    help="Repeatable; all if none.",
)
@click.option("--network", "networks", multiple=True, help="Repeatable: of the table, as timm:resnet18.")
@click.option("--timeout", type=click.FloatRange(1), default=300, help="Seconds for one network.")
@click.option(
    "--rows",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep finished rows in this file, one JSON a line; those in it are not measured again.",
)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@document_options
def main(output: Output, markdown: bool, **values: Any) -> None:
    """Measure how much of the networks of timm, torchvision and transformers becomes reversible.

    Random weights; nothing is downloaded.
    """
    options = CoverageOptions(**values)
    if options.rows is not None and not options.rows.parent.is_dir():
        raise ValueError(f"{options.rows}: folder {options.rows.parent} does not exist; make it first")
    rows = _measure_all(options, output)
    described, total = environment("cpu"), summary(rows)
    output.say(header(described))
    output.say(table(rows, markdown=markdown))
    output.say(summary_line(total))
    output.document({**described, **total, "rows": [vars(row) for row in rows]})


if __name__ == "__main__":
    main()
