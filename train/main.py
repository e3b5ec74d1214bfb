"""The train command: `leantad train`, `deepspeed train/main.py` or `python train/main.py`."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__":
    # The launcher puts train/ first on sys.path, where its files would be top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from pipeline.text import first_names
from train.cli import (
    PATH,
    Command,
    Output,
    launched_as_first,
    local_rank_option,
    one_line,
    output_options,
    remark_on_lock,
    trust_option,
)

if TYPE_CHECKING:
    from train.settings import Settings

# What a run writes beside its checkpoints, settings.yaml and log.jsonl.
RESULTS = ("metrics.json", "detections.json", "report.html")
ENDING = threading.Lock()  # held by the thread that ends the process


def remove_run(out: Path) -> None:
    """Remove what a run wrote into `out`, and nothing else."""
    from train.checkpoint import remove_checkpoints

    remove_checkpoints(out)
    for name in ("settings.yaml", "log.jsonl", *RESULTS):
        (out / name).unlink(missing_ok=True)


def settings_of_run(
    recipe: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    *,
    resume: bool,
    force: bool = False,
    trust: bool = False,
) -> Settings:
    """The settings to run with; ValueError rather than overwrite a run, or resume it under others.

    trust: use all that the recipe, or the run to be resumed, names; otherwise as `check_trust` says.
    """
    from train.checkpoint import last_checkpoint
    from train.settings import check_trust, load_settings, read_settings

    if resume and force:
        raise ValueError("got --resume and --force: go on with the run, or start anew? want one of them")
    written = out / "settings.yaml"
    has_run = not force and last_checkpoint(out) is not None
    has_results = has_run or any((out / name).exists() for name in RESULTS)
    if has_results and not (resume or force):
        raise ValueError(
            f"--out {out}: holds a run already; go on with --resume, start anew with --force, or choose "
            "another folder"
        )
    if recipe is None and not (resume and written.exists()):
        raise ValueError(missing_recipe(out, resume=resume, has_run=has_run))
    # Other machines of a launch may have other home folders, without the key of this one.
    trust = trust or not launched_as_first()
    if recipe is not None:
        settings = load_settings(recipe, overrides, trust=trust)
    else:
        if not trust:
            check_trust(written, overrides)
        settings = read_settings(written, overrides)
    if has_run and resume and written.exists():
        check_unchanged(settings, out)
    return settings


def check_unchanged(settings: Settings, out: Path) -> None:
    """ValueError unless the run in `out` was started with these settings, but for those that may change."""
    from train.changes import forbidden_changes
    from train.settings import read_settings

    written = read_settings(out / "settings.yaml", ())  # settings that it lacks have their defaults
    changed = forbidden_changes(written.model_dump(mode="json"), settings.model_dump(mode="json"))
    if changed:
        raise ValueError(
            f"--resume {out}: the run was started with another {first_names(changed, quoted=False)}; "
            "resume without --recipe and --set, or start anew with another --out"
        )


def missing_recipe(out: Path, *, resume: bool, has_run: bool) -> str:
    """Why there are no settings to run with, and where to get them."""
    if has_run:
        return f"{out / 'settings.yaml'}: no such file; give the --recipe and --set the run was started with"
    if resume:
        return f"--resume: no run in {out}; want the folder of one, or --recipe to start one there"
    return "--recipe: missing; want a YAML file, such as train/recipes/demo.yaml"


def prepare_folder(settings: Settings, out: Path, output: Output, *, resume: bool, force: bool) -> bool:
    """Make the run folder ready on rank 0; whether there is a checkpoint to go on from. All ranks call it."""
    from pipeline.files import write_text
    from train.checkpoint import last_checkpoint, prune, remove_half_written, restore_links
    from train.distributed import barrier, rank
    from train.settings import dump_settings
    from train.trust import is_own_text, key_file

    if rank() == 0:
        if force:
            remove_run(out)
        out.mkdir(parents=True, exist_ok=True)
        remove_half_written(out)
        text = dump_settings(settings)
        write_text(out / "settings.yaml", text)
        if not is_own_text(text):
            output.remark(f"{key_file()}: no key can be kept there; eval will take this run for a stranger's")
    has_run = resume and last_checkpoint(out) is not None
    if resume and rank() == 0:
        fresh = f"{out}: no checkpoint to go on from; this is the first step"
        if remark := restore_links(out) if has_run else fresh:
            output.remark(remark)
        if has_run:  # killed while a checkpoint was given its name, a run leaves the one before it, too
            prune(out)
    barrier()  # the links may have moved: all ranks have to go on from the same checkpoint
    return has_run


def run_training(settings: Settings, out: Path, output: Output, *, resume: bool, force: bool) -> bool:
    """The run; False if it was interrupted, and saved. Raises TrainingStopped if it cannot go on."""
    from pipeline.temporary_folder import own_temporary_files
    from train.build_network import resolve_device
    from train.data import open_data
    from train.distributed import lost_connection, world_size
    from train.engine import start_process_group
    from train.heartbeat import heartbeat
    from train.loop import fit

    lost = partial(end_without_the_others, out, output)
    try:
        with own_temporary_files():
            start_process_group(resolve_device(settings.run.device))
            open_data(settings)  # before anything is removed or written
            with heartbeat(settings.run.lost_after_seconds, lost), output.others_on_stderr():
                has_run = prepare_folder(settings, out, output, resume=resume, force=force)
                complete = fit(settings, out, resume=has_run, output=output)
    except RuntimeError as error:
        if world_size() > 1 and (reason := lost_connection(error)):
            lost(f"another process of the run has ended ({reason})")
        raise
    return complete


def run_alone(
    recipe: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    output: Output,
    *,
    resume: bool,
    force: bool,
    trust: bool,
) -> bool:
    """`run_training` with `settings_of_run`; keeps other trainings out of the folder meanwhile.

    ValueError if one is in it.
    """
    from pipeline.lock import writing_folder
    from train.checkpoint import going_on

    with writing_folder(out, "train") if launched_as_first() else nullcontext() as last:
        remark_on_lock(output, out, last)
        settings = settings_of_run(recipe, overrides, out, resume=resume, force=force, trust=trust)
        try:
            return run_training(settings, out, output, resume=resume, force=force)
        except OSError as error:  # a disk that is full, or gone
            raise ValueError(f"{one_line(error, out)}; {going_on(out)}") from error


def train(
    recipe: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    output: Output,
    *,
    resume: bool,
    force: bool,
    trust: bool = False,
) -> int:
    """The run with what it prints; returns the exit code: 0 complete, 1 stopped by a failure, 130 interrupted
    and saved."""
    try:
        complete = run_alone(recipe, overrides, out, output, resume=resume, force=force, trust=trust)
    except RuntimeError as error:
        from train.loop import TrainingStopped

        if not isinstance(error, TrainingStopped):
            raise
        output.error(str(error))
        return 1
    from train.distributed import rank, shut_down

    if rank() == 0:
        print_end(out, output, complete=complete)
    code = 0 if complete else 130
    # At exit, not here: DeepSpeed cannot start a second process group in one process (tests do several runs).
    # After a failure it is left out: its barrier would wait for ranks that wait elsewhere.
    atexit.register(shut_down, code)
    return code


def end_without_the_others(out: Path, output: Output, reason: str) -> NoReturn:
    """Say that another process of the run is lost, once, and end this one: exit code 1."""
    from train.checkpoint import going_on
    from train.distributed import rank

    if not ENDING.acquire(blocking=False):
        threading.Event().wait()  # the other thread is at it
    output.error(f"rank {rank()}: {reason}; its own output says why; {going_on(out)}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # clean-up would wait for the others


def print_end(out: Path, output: Output, *, complete: bool) -> None:
    """The mAP table and where the report is; of an interrupted run, how to go on with it."""
    from pipeline.files import read_json
    from train.distributed import world_size
    from train.evaluation.average_precision import format_map_table

    if not complete:
        command = "leantad train" if world_size() == 1 else "deepspeed ... train/main.py"
        output.stopped(f"stopped and saved; go on with: {command} --resume --out {out}")
        output.document({"complete": False, "out": out})
        return
    metrics = read_json(out / "metrics.json")
    output.say(format_map_table(metrics))
    output.say(f"report: {out / 'report.html'}")
    output.document({"complete": True, "out": out, **metrics})


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  leantad train --recipe demo --out runs/demo
  deepspeed train/main.py --recipe train/recipes/demo.yaml --out runs/demo   (all GPUs of the machine)
""",
    interrupted="--resume goes on from the last checkpoint, if there is one",
)
@click.option("--recipe", type=PATH, help="YAML of settings, or the name of a shipped one.")
@click.option("--out", type=PATH, required=True, help="Run folder.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; repeatable."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of --out, on the next sample.")
@click.option("--force", is_flag=True, help="Remove the run in --out and start anew.")
@trust_option
@output_options
@local_rank_option
def main(
    recipe: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    resume: bool,
    force: bool,
    trust: bool,
    output: Output,
) -> None:
    """Train a detector, validate it, write checkpoints, metrics.json and report.html into --out."""
    sys.exit(train(recipe, out, overrides, output, resume=resume, force=force, trust=trust))


if __name__ == "__main__":
    main()
