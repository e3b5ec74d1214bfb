"""Feeds damaged files to the commands: each ends well, or with one line of at most 500 characters.

    python tests/fuzz.py --count 5000

The rule for every input: exit code 0 and whatever the command says; or exit code 1 or 2, and each line on
stderr is an error of at most 500 characters (one line for exit code 2). No traceback, no more than SECONDS,
nothing written outside of the command's own folder, nothing left in the temporary folder, no program run and
no network reached. Input number i is the same whatever was run before it, so `--first i --count 1` repeats
one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import click
from click.testing import CliRunner
from fuzz_mutations import mutations_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of a script, only its own folder is there
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_LINE = 500  # characters of a line on stderr
SECONDS = 20.0  # of computing for one input; others may use the machine, too
PATIENCE = 120.0  # seconds without an answer after which a process hangs
SEED = 11
# Where torch and DeepSpeed keep what they compiled, and lock it; not written for an input.
COMPILED = (os.environ.get("TORCH_EXTENSIONS_DIR", ""), os.path.join(sys.prefix, "torch_extensions"))
OURS = ("ninja", "file")  # programs: DeepSpeed's for what it compiles, Python's for what this machine is
WRITING = os.O_WRONLY | os.O_RDWR
INDUCTOR = "torchinductor_"  # the folder that torch makes in the temporary one when it is imported


# ------------------------------------------------------------------------------------------- good inputs


def build_good(folder: Path) -> None:
    """Small files of every kind that the commands read, as the commands write them."""
    import numpy as np
    import torch
    from stand_ins import csv_of
    from tiny_run import make_shards_of, run

    from model.backbones import build_backbone
    from train.eval import main as evaluate

    make_shards_of(folder)
    csv_of(folder / "raw" / "annotations.json", folder / "annotations.csv")
    (folder / "classes.txt").write_text("\n".join(classes_of(folder)) + "\n")
    os.chdir(folder)  # so that paths in settings stay right when the folder is copied
    shutil.copy(ROOT / "ds_config.json", folder / "ds_config.json")
    changes = {"run__epochs": 1, "run__eval_every": 1, "run__ds_config": "ds_config.json"}
    result = run(Path("shards"), Path("run"), **changes)
    assert result.exit_code == 0, result.output
    names = ["--checkpoint", "run", "--out", "detections.json", "--raw", "raw.h5", "--quiet"]
    result = CliRunner().invoke(evaluate, names)
    assert result.exit_code == 0, result.output
    scores = {
        video.stem: dict.fromkeys(classes_of(folder), 0.5) for video in (folder / "raw/videos").iterdir()
    }
    write_json(folder / "scores.json", {"results": scores})
    torch.manual_seed(0)
    weights = build_backbone("r2plus1d_tiny").state_dict()
    torch.save(
        {"model": {f"features.{name}": tensor for name, tensor in weights.items()}}, folder / "tsp.pth"
    )
    np.savez(folder / "blobs.npz", **{f"features.{name}": tensor.numpy() for name, tensor in weights.items()})
    build_unfinished(folder)


def classes_of(folder: Path) -> list[str]:
    import json

    return list(json.loads((folder / "shards" / "dataset.json").read_text())["classes"])


def write_json(path: Path, value: Any) -> None:
    import json

    path.write_text(json.dumps(value))


def build_unfinished(folder: Path) -> None:
    """A data set whose packing was stopped after the videos, before the last file."""
    from pipeline.packing import pack_dataset

    whole = pack_dataset.write_dataset
    try:
        pack_dataset.write_dataset = stop  # type: ignore[assignment]
        CliRunner().invoke(command("make-shards"), [*UNFINISHED[1:], "--quiet"])
    finally:
        pack_dataset.write_dataset = whole
    assert (folder / "unfinished" / ".work" / "plan.json").is_file()


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def command(name: str) -> click.Command:
    """The click command of this name."""
    import importlib

    from tools.cli import COMMANDS

    found: click.Command = importlib.import_module(COMMANDS[name][0]).main
    return found


# ------------------------------------------------------------------------------------ files and commands

VIDEOS, ANNOTATIONS, OUT = "raw/videos", "raw/annotations.json", "out"
BEST = "run/checkpoints/best"
MAKE = ["make-shards", VIDEOS, ANNOTATIONS, "--workers", "1"]
PACK = [*MAKE, "--out", f"{OUT}/s"]
UNFINISHED = [*MAKE, "--copy", "--out", "unfinished"]
TRUTH = ["--ground-truth", ANNOTATIONS, "--subset", "validation"]
RESUME = ["train", "--resume", "--out", "run"]
CHECKPOINT = ["eval", "--checkpoint", BEST, "--shards", "shards", "--out", f"{OUT}/d.json"]
PREDICT = ["predict", "raw/videos/valid_0000.mp4", "--checkpoint", "run", "--out", f"{OUT}/found"]
EVALUATE = ["eval", "--detections", "detections.json"]
COMPARE = ["compare", "detections.json", "run", *TRUTH, "--resamples", "20"]
VIEW = ["view", "detections.json", "--out", f"{OUT}/view"]
RAW = ["eval", "--from-raw", "raw.h5", "--shards", "shards", "--out", f"{OUT}/d.json"]
INSPECT = ["inspect", "shards"]


def convert(file: str) -> list[str]:
    """Convert these weights of the tiny backbone."""
    return ["convert-weights", file, "--backbone", "r2plus1d_tiny", "--out", f"{OUT}/w.safetensors"]


@dataclass(frozen=True)
class Kind:
    """Files to damage (a glob), the commands that read them, and how often they are drawn."""

    files: str
    commands: tuple[list[str], ...]
    weight: int = 4


# Those that start a network or a worker take a third of a second, the others a fiftieth: they are drawn more.
KINDS = (
    Kind(ANNOTATIONS, ([*EVALUATE, *TRUTH], [*VIEW, *TRUTH], COMPARE), 24),
    Kind(ANNOTATIONS, ([*PACK, "--copy"],), 1),
    Kind(
        "annotations.csv", ([*EVALUATE, "--ground-truth", "annotations.csv", "--subset", "validation"],), 15
    ),
    Kind("classes.txt", ([*MAKE, "--classes", "classes.txt", "--check"],), 1),
    Kind("detections.json", ([*EVALUATE, *TRUTH], [*VIEW, *TRUTH], VIEW, [*VIEW, "--embed"]), 27),
    Kind("detections.json", ([*EVALUATE, *TRUTH, "--diagnose"], COMPARE), 12),
    Kind("scores.json", ([*RAW, "--external-scores", "scores.json"],), 9),
    Kind("shards/dataset.json", (INSPECT, INSPECT, [*EVALUATE, "--shards", "shards"]), 27),
    Kind("shards/dataset.json", ([*VIEW, "--videos", "shards"], [*VIEW, "--ground-truth", "shards"]), 15),
    Kind("shards/dataset.json", (CHECKPOINT, RESUME), 3),
    Kind("shards/*.idx", (INSPECT, [*VIEW, "--videos", "shards", "--embed"]), 12),
    Kind("shards/*.tar", (INSPECT, [*VIEW, "--videos", "shards"], CHECKPOINT), 4),
    Kind("raw/videos/valid_0000.mp4", (PREDICT, [*VIEW, "--videos", VIDEOS, "--embed"]), 4),
    Kind(f"{VIDEOS}/*.mp4", (PACK,), 1),
    Kind("run/settings.yaml", ([*RESUME, "--recipe", "run/settings.yaml"], RESUME), 4),
    Kind(f"{BEST}/settings.yaml", (CHECKPOINT, PREDICT), 5),
    Kind(f"{BEST}/*.json", (CHECKPOINT, PREDICT, RESUME), 6),
    Kind(f"{BEST}/progress.json", (RESUME,), 4),
    Kind(f"{BEST}/model.safetensors", (CHECKPOINT, convert(f"{BEST}/model.safetensors")), 5),
    Kind(f"{BEST}/resume/*", (RESUME,), 2),
    Kind(f"{BEST}/resume/engine/*.pt", (RESUME,), 2),
    Kind("run/log.jsonl", (RESUME,), 4),
    Kind("run/metrics.json", (RESUME,), 1),
    Kind("run/detections.json", (RESUME, ["view", "run", "--out", f"{OUT}/view"]), 2),
    Kind("ds_config.json", (RESUME,), 2),
    Kind("raw.h5", (RAW, [*RAW, "--set", "post.sigma=0.4"]), 27),
    Kind("tsp.pth", (convert("tsp.pth"),), 2),
    Kind("blobs.npz", (convert("blobs.npz"),), 2),
    Kind("unfinished/.work/*.json", (UNFINISHED,), 1),
    Kind("unfinished/.work/*/*.json", (UNFINISHED,), 2),
    Kind("unfinished/*.tar", (UNFINISHED,), 1),
)


# --------------------------------------------------------------------------------------------- the rule


class Outside(BaseException):
    """A command wrote outside of its folders, ran a program or reached the network."""


_watched: list[Path] = []  # the folder of the input that is being tried, if any


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "subprocess.Popen" and arguments[0] in OURS:
        return
    if event in ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn"):
        raise Outside(f"{event} {arguments[0]!r}")
    if (
        event == "open"
        and isinstance(arguments[0], (str, bytes))
        and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith((f"{_watched[0]}/", "/dev/", *filter(None, COMPILED))):
            raise Outside(f"{event} {path}")


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Work in folder/work, with an own temporary folder; Outside for what goes beyond `folder`."""
    before, previous = os.getcwd(), tempfile.tempdir
    os.chdir(folder / "work")
    tempfile.tempdir = str(folder / "tmp")
    _watched.append(folder)
    try:
        yield
    finally:
        _watched.pop()
        tempfile.tempdir = previous
        os.chdir(before)


def broken_rule(result: Any, folder: Path, seconds: float) -> str | None:
    """What a command did that it must not, as a line to group faults by; None if nothing."""
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        last = traceback.extract_tb(error.__traceback__)
        ours = [
            frame
            for frame in last
            if frame.filename.startswith(str(ROOT)) and "fuzz" not in Path(frame.filename).name
        ]
        at = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
        return f"{type(error).__name__} in {at}: {' '.join(str(error).split())[:120]}"
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}"
    lines = result.stderr.splitlines()
    if any(len(line) > LONGEST_LINE for line in lines):
        line = max(lines, key=len)
        return f"line of {len(line)} characters: {line[:80]}"
    if result.exit_code and not any(line.startswith("error: ") for line in lines):
        return f"exit code {result.exit_code} without an error: {lines[:1]}"
    if result.exit_code == 2 and len(lines) > 1:
        return f"{len(lines)} lines for exit code 2: {lines[0][:80]}"
    if "Traceback" in result.stderr:
        return "traceback on stderr"
    if left := sorted(path.name for path in (folder / "tmp").rglob("*") if INDUCTOR not in path.name):
        return f"left in the temporary folder: {left[0]}"
    if left := [path for path in (folder / "work").rglob("*") if path.name.endswith(".tmp")]:
        return f"left under a temporary name: {left[0]}"
    if others := sorted({path.name for path in folder.iterdir()} - {"work", "tmp"}):
        return f"written outside: {others[0]}"
    return f"took {seconds:.0f} s" if seconds > SECONDS else None


def draw(good: Path, number: int) -> tuple[str, list[str], Callable[[bytes], bytes]]:
    """The file that input `number` damages, the command that reads it, and the damage."""
    random = Random(f"{SEED}:{number}")
    kind = random.choices(KINDS, [kind.weight for kind in KINDS])[0]
    path = random.choice(sorted(path for path in good.glob(kind.files) if path.is_file()))
    mutate = random.choice(mutations_of(path))
    return str(path.relative_to(good)), random.choice(kind.commands), partial(mutate, random=random)


def try_input(good: Path, folder: Path, number: int) -> str | None:
    """Damage a copy of the good files, run the command; returns the broken rule, or None."""
    (folder / "tmp").mkdir(parents=True)
    shutil.copytree(good, folder / "work", symlinks=True)
    (folder / "work" / OUT).mkdir()
    file, arguments, mutate = draw(good, number)
    target = folder / "work" / file
    target.write_bytes(mutate(target.read_bytes()))
    start = time.process_time()
    try:
        with watched(folder):
            result = CliRunner().invoke(command(arguments[0]), [*arguments[1:], "--quiet"])
        broken = broken_rule(result, folder, time.process_time() - start)
    except Outside as outside:
        broken = str(outside)
    return broken and f"{' '.join(arguments[:2])} < {file}: {broken}"


# ---------------------------------------------------------------------------------------- many inputs


def try_good(good: Path, folder: Path) -> None:
    """Run every command on the good files: libraries are imported, and without damage nothing is wrong."""
    commands = {tuple(arguments): None for kind in KINDS for arguments in kind.commands}
    for number, arguments in enumerate(commands):
        copy = folder / f"good-{number}"  # a name of its own: some file systems keep what is still open
        shutil.copytree(good, copy, symlinks=True)
        (copy / OUT).mkdir()
        os.chdir(copy)
        result = CliRunner().invoke(command(arguments[0]), [*arguments[1:], "--quiet"])
        os.chdir(good)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        shutil.rmtree(copy, ignore_errors=True)


def try_inputs(good: Path, numbers: Sequence[int], report: Callable[[int, str | None], None]) -> None:
    """Try inputs one after another; report: called with each number and the rule it broke, or None."""
    with tempfile.TemporaryDirectory(prefix="leantad-fuzz-") as folder:
        try_good(good, Path(folder))
        for number in numbers:
            copy = Path(folder).resolve() / f"input-{number}"
            report(number, try_input(good, copy, number))
            shutil.rmtree(copy, ignore_errors=True)


def _work(good: Path, numbers: Sequence[int], pipe: Any) -> None:
    # A file that makes a library crash ends this process alone; FFmpeg's own lines are not ours.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        try_inputs(good, numbers, lambda number, broken: pipe.send((number, broken)))
    except Exception:  # the good files themselves, or this script: nobody would see it on stderr
        pipe.send(traceback.format_exc())
        raise
    pipe.send(None)


def run_worker(good: Path, numbers: list[int], found: dict[int, str | None]) -> None:
    """Try inputs in a process of its own; one that kills the process is a fault, and the rest goes on."""
    context = get_context("spawn")
    while numbers:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(good, numbers, sender))
        process.start()
        sender.close()
        done, why = 0, ""
        while True:
            if not receiver.poll(PATIENCE):
                why = f"; no answer in {PATIENCE:.0f} s"
                process.kill()
                break
            try:
                message = receiver.recv()
            except EOFError:
                break
            if message is None:
                break
            if isinstance(message, str):
                why = f"; {message}"
                break
            found[message[0]] = message[1]
            if len(found) % 500 == 0:
                click.echo(f"{len(found)} inputs tried", err=True)
            if message[1]:
                click.echo(f"{message[0]}: {message[1]}", err=True)
            done += 1
        process.join()
        if done < len(numbers):
            file, arguments, _ = draw(good, numbers[done])
            broken = f"{' '.join(arguments[:2])} < {file}: process ended: {process.exitcode}{why}"
            found[numbers[done]] = broken
            click.echo(f"{numbers[done]}: {broken}", err=True)
        numbers = numbers[done + 1 :]


def try_many(numbers: Sequence[int], good: Path, *, jobs: int) -> dict[int, str]:
    """The faults among these inputs, by number; good: a folder of good files, made if it is empty."""
    if not (good / "raw").is_dir():
        builder = get_context("spawn").Process(target=build_good, args=(good,))
        builder.start()
        builder.join()
        assert builder.exitcode == 0, "the good files could not be made"
    found: dict[int, str | None] = {}
    slices = [list(numbers[job::jobs]) for job in range(jobs)]
    threads = [Thread(target=run_worker, args=(good, part, found)) for part in slices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == set(numbers), "a process ended before it had tried all"
    return {number: text for number, text in sorted(found.items()) if text is not None}


@click.command()
@click.option("--count", default=2000, show_default=True, help="How many inputs.")
@click.option("--first", default=0, show_default=True, help="Number of the first.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--good", type=click.Path(path_type=Path), help="Folder of good files, made if it is empty.")
def main(count: int, first: int, jobs: int, good: Path | None) -> None:
    """Try COUNT damaged inputs; exit code 1 if any breaks the rule."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="leantad-good-") as temporary:
        folder = (good or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        faults = try_many(range(first, first + count), folder, jobs=jobs)
    kinds: dict[str, list[int]] = {}
    for number, text in faults.items():
        kinds.setdefault(text.partition(": ")[2], []).append(number)
    for numbers in sorted(kinds.values(), key=len, reverse=True):
        click.echo(f"{len(numbers):5d}  {faults[numbers[0]]}  (input {numbers[0]})")
    seconds = time.perf_counter() - start
    click.echo(f"{count} inputs, {len(faults)} faults of {len(kinds)} kinds, {seconds:.0f} s")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
