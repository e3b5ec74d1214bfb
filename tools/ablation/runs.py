"""Runs the planned trainings, several at a time, and reads what became of each; a failure ends no other."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import read_json
from pipeline.schemas import read_yaml
from pipeline.text import first_names, short
from tools.ablation.grid import PlannedRun
from train.changes import forbidden_changes, measured_otherwise, other_costs
from train.distributed import LAUNCH_VARIABLES
from train.progress import checked_metrics, read_events
from train.settings import read_settings

TRAIN = Path(__file__).resolve().parents[2] / "train" / "main.py"
METRICS = "metrics.json"  # a run has it when it is complete
UNSTATED = "not stated"
LAST_LINES = 20  # of a failed run's output, in which its reason is looked for


@dataclass(frozen=True)
class RunResult:
    """What became of a run. metrics: as in metrics.json, None unless complete; reason: why it failed, if so.

    seconds: training without validation; memory_mib: the peak, of the GPU, or of the process without one.
    """

    run: PlannedRun
    metrics: dict[str, Any] | None = None
    seconds: float | None = None
    memory_mib: float | None = None
    reason: str | None = None


def run_folder(study: Path, run: PlannedRun) -> Path:
    """Where `train` writes the run."""
    return study / "runs" / run.name


def check_runs(study: Path, runs: Sequence[PlannedRun]) -> list[str]:
    """ValueError if a run that is there already was started with other settings than planned now.

    A complete one was measured with its own, too, and so were its memory and seconds; one that is not goes on
    and is measured with those of now. Returns a warning of each whose memory and seconds will be of both.
    """
    warnings = []
    for run in runs:
        folder = run_folder(study, run)
        if not (folder / "settings.yaml").is_file():
            continue
        before = read_settings(folder / "settings.yaml", ()).model_dump(mode="json")
        planned = run.settings.model_dump(mode="json")
        changed, costs = forbidden_changes(before, planned), other_costs(before, planned)
        advice = "give the same settings to go on with the study, or another --out for a new one"
        if (folder / METRICS).is_file():
            stated = read_yaml(folder / "settings.yaml")  # an earlier version measured without what it lacks
            measured = {name: _short(stated, name) for name in measured_otherwise(stated, planned)}
            changed += [f"{name} ({value}, now {_short(planned, name)})" for name, value in measured.items()]
            changed += costs
            if UNSTATED in measured.values():
                command = f"leantad train --out {folder} --resume"
                advice = f"measure it anew with {command}, or give another --out for a new study"
        if changed:
            raise ValueError(f"{folder}: was run with another {first_names(changed, quoted=False)}; {advice}")
        if costs and (folder / "checkpoints").is_dir():
            names = first_names(costs, quoted=False)
            warnings.append(f"{folder}: goes on with another {names}; its minutes and MiB will be of both")
    return warnings


def _short(settings: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The value of a setting, by its dotted name, for a message."""
    group, key = name.split(".")
    return short(settings[group][key], 24) if key in settings[group] else UNSTATED


def read_result(study: Path, run: PlannedRun) -> RunResult | None:
    """The result of a complete run, read from its folder; None if it is not complete."""
    folder = run_folder(study, run)
    file = folder / METRICS
    if not file.is_file():
        return None
    metrics = checked_metrics(read_json(file), where=file)
    events, _ = read_events(folder / "log.jsonl")
    memory = [event["memory_mib"] for event in events if "memory_mib" in event]
    seconds = metrics.get("seconds", {}).get("train")
    return RunResult(run, metrics, seconds, max(memory, default=None))


def reason_of(log: Path, code: int) -> str:
    """Why a run failed: the last error in its output, or its last line; else its exit code."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines[-LAST_LINES:] if line.startswith("error: ")]
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (errors or lines or [f"{ended}, without a word"])[-1]


def num_gpus() -> int:
    """GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def default_jobs() -> int:
    """Runs at a time: one a GPU; without one, one for every four cores."""
    return num_gpus() or max(1, (os.cpu_count() or 1) // 4)


@dataclass
class Trainings:
    """Processes of `leantad train`, at most `jobs` at a time; each has a GPU, or a share of the cores."""

    study: Path
    recipe: Path
    jobs: int
    trust: bool
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self.jobs):
            self.slots.put(number)
        self.gpus = num_gpus()

    def environment(self, slot: int) -> dict[str, str]:
        """Of the process in this slot: which GPU, or how many threads, it may use."""
        values = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
        if self.gpus > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            own = slot % self.gpus
            values["CUDA_VISIBLE_DEVICES"] = visible[own] if len(visible) > own and visible[own] else str(own)
        elif self.jobs > 1:
            values.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        return values

    def command(self, run: PlannedRun) -> list[str]:
        """The words that train the run, or go on with it."""
        sets = [word for override in run.overrides for word in ("--set", override)]
        trust = ["--trust"] if self.trust else []
        where = ["--recipe", str(self.recipe), "--out", str(run_folder(self.study, run))]
        return [sys.executable, str(TRAIN), *where, "--quiet", "--resume", *trust, *sets]

    def train(self, run: PlannedRun) -> RunResult | None:
        """Train the run to its end; None if it was stopped before. Called in a thread of its own."""
        slot = self.slots.get()
        log = self.study / "logs" / f"{run.name}.log"
        try:
            with log.open("wb") as file:
                with self.lock:
                    if self.stopped:
                        return None
                    # In a session of its own: Ctrl-C reaches it once, by `stop`; a second ends it unsaved.
                    process = subprocess.Popen(
                        self.command(run),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=self.environment(slot),
                        start_new_session=True,
                    )
                    self.running[run.name] = process
                code = process.wait()
        finally:
            self.running.pop(run.name, None)
            self.slots.put(slot)
        if code != 0:
            return None if self.stopped else RunResult(run, reason=reason_of(log, code))
        return read_result(self.study, run) or RunResult(run, reason=f"ended without {METRICS}")

    def stop(self) -> None:
        """Ask all runs to save and end, and start no other."""
        with self.lock:
            self.stopped = True
            for process in self.running.values():
                process.send_signal(signal.SIGINT)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM within is Ctrl-C: what was started is then stopped and saved, and not left behind."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def train_all(trainings: Trainings, runs: Sequence[PlannedRun]) -> Iterator[RunResult]:
    """The result of each run, in the order in which they end. On Ctrl-C all are saved, and it goes on up."""
    (trainings.study / "logs").mkdir(parents=True, exist_ok=True)
    with terminated_as_interrupted(), ThreadPoolExecutor(trainings.jobs) as threads:
        waiting: set[Future[RunResult | None]] = {threads.submit(trainings.train, run) for run in runs}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (result for each in done if (result := each.result()) is not None)
        finally:
            if waiting:
                trainings.stop()
