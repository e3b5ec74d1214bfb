"""`leantad ablate`: a grid of settings x seeds -> runs -> one table: mean, spread, time, memory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import counted
from train.cli import PATH, Command, Output, exit_with, output_options, plain, remark_on_lock, trust_option

if TYPE_CHECKING:
    from tools.ablation.grid import PlannedRun
    from tools.ablation.runs import RunResult

NAMES = ("results.md", "results.csv", "results.json", "results.svg")


@dataclass(frozen=True)
class Study:
    """What was asked for, and where it goes."""

    recipe: Path
    overrides: tuple[str, ...]
    vary: tuple[str, ...]
    seeds: int
    out: Path
    trust: bool

    def command(self) -> str:
        """The command line that repeats the study, or goes on with it."""
        arguments = ["leantad", "ablate", "--recipe", str(self.recipe)]
        for option, values in (("--set", self.overrides), ("--vary", self.vary)):
            arguments += [word for value in values for word in (option, value)]
        arguments += [
            "--seeds",
            str(self.seeds),
            "--out",
            str(self.out),
            *(["--trust"] if self.trust else []),
        ]
        return shlex.join(arguments)


def document_of(study: Study, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]) -> dict[str, Any]:
    """The study as JSON values: {"command", "hardware", "torch", "commit", "rows", "runs"}."""
    import torch

    from tools.ablation.table import measured, rows_of
    from tools.benchmarks.common import environment

    described = [
        {
            "name": run.name,
            "settings": dict(run.values),
            "seed": run.seed,
            "folder": study.out / "runs" / run.name,
            "state": "waiting" if result is None else "failed" if result.reason else "complete",
            "reason": result and result.reason,
            **(measured(result) if result else {}),
        }
        for run in runs
        for result in [results.get(run.name)]
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "command": study.command(),
        **environment(device),
        "rows": rows_of(runs, results),
        "runs": described,
    }


def write_results(
    study: Study, runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> dict[str, Any]:
    """Write the table as NAMES; returns the document."""
    from pipeline.files import write_json, write_text
    from tools.ablation.plot import plot
    from tools.ablation.table import csv_table, markdown_table

    document = document_of(study, runs, results)
    machine = f"{document['hardware']}, torch {document['torch']}, commit {document['commit']}"
    page = f"{markdown_table(document['rows'])}\nMean +- standard deviation over seeds; {machine}. "
    write_text(study.out / "results.md", f"{page}Repeat it with\n\n```sh\n{document['command']}\n```\n")
    write_text(study.out / "results.csv", csv_table(document["rows"]))
    write_text(study.out / "results.svg", plot(document["rows"], runs, results))
    write_json(study.out / "results.json", plain(document))
    return document


def run_study(study: Study, runs: Sequence[PlannedRun], jobs: int, output: Output) -> dict[str, RunResult]:
    """Train what is not complete; the results by name, written into files after each run."""
    from tools.ablation.runs import Trainings, read_result, train_all

    found = (read_result(study.out, run) for run in runs)
    results = {result.run.name: result for result in found if result is not None}
    left = [run for run in runs if run.name not in results]
    if results:
        output.remark(f"{study.out}: {counted(len(results), 'run')} complete already")
    write_results(study, runs, results)
    trainings = Trainings(study.out, study.recipe, jobs, study.trust)
    for result in output.progress(train_all(trainings, left), "runs", unit="run", total=len(left)):
        results[result.run.name] = result
        write_results(study, runs, results)
        if result.metrics is not None:
            output.say(f"{result.run.name}: average mAP {result.metrics['average_mAP']:.4f}")
        else:
            output.error(f"{result.run.name}: {result.reason}")
    return results


@click.command(
    cls=Command,
    epilog="""\b
Example:
  leantad ablate --recipe mine.yaml --vary encoder.frozen=true,false --seeds 3 --out studies/frozen
""",
    interrupted="the same command goes on with the study",
)
@click.option("--recipe", type=PATH, required=True, help="YAML of settings, or the name of a shipped one.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For all runs; repeatable.")
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="The values of one setting; repeatable: every combination is run.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, help="Seeds of each: 0 to N - 1.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Runs at a time. Default: one a GPU; without one, one for every four cores.",
)
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@trust_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, jobs: int | None, output: Output, **values: Any) -> None:
    """Train every combination of varied settings with several seeds; compare them in one table and plot.

    Given again, the command goes on: complete runs are kept, stopped ones resumed, failed ones tried anew;
    with more values or seeds, those are added. One run that fails ends no other: exit code 1 then.
    """
    from pipeline.lock import writing_folder
    from tools.ablation.grid import parse_vary, plan_runs
    from tools.ablation.runs import check_runs, default_jobs
    from tools.ablation.table import text_table

    study = Study(**values)
    varied = parse_vary(study.vary)
    runs = plan_runs(study.recipe, study.overrides, varied, seeds=study.seeds, trust=study.trust)
    study.out.mkdir(parents=True, exist_ok=True)
    with writing_folder(study.out, "ablate") as last:
        remark_on_lock(output, study.out, last)
        for line in check_runs(study.out, runs):
            output.warn(line)
        results = run_study(study, runs, jobs or default_jobs(), output)
        document = write_results(study, runs, results)
    output.say(text_table(document["rows"]))
    output.say(f"table and plot: {', '.join(str(study.out / name) for name in NAMES)}")
    output.document(document)
    failed = [result for result in results.values() if result.reason is not None]
    problems = [f"{counted(len(failed), 'run')} failed; logs are in {study.out / 'logs'}"] if failed else []
    exit_with(ctx, problems)


if __name__ == "__main__":
    main()
