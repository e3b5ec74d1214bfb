"""Kills packing, training, evaluation and prediction at random moments (SIGKILL), then lets them finish.

    python tests/kill.py --rounds 200 --work /tmp/kill

A round takes one of the jobs, starts it in a folder of its own, kills it one to three times, starts it again
each time, and compares what it leaves in the end with what an undisturbed run left: every file, byte for byte
but for times and seconds. Nothing else may lie there, nor in the folder for temporary files, and no process
may outlive the one that was killed. Rounds follow from --seed and their number. What was done is in
WORK/rounds.jsonl; the same command goes on from there.

Jobs are forked from this process, which has imported all that they need: so that kills land in their work.
"""

from __future__ import annotations

import argparse
import enum
import faulthandler
import getpass
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tiny_run import SMALL, make_shards_of  # noqa: E402

from pipeline.files import sha256_of, write_json  # noqa: E402

LONGEST_SECONDS = 120.0  # of one start of a job; what takes longer hangs
TRAINING = {**SMALL, "run.checkpoint_every": 1, "run.eval_every": 1}
JOBS = ("pack", "train", "eval", "predict")
CACHES = {f"torchinductor_{getpass.getuser()}"}  # torch makes this folder where it is not there
UNSTEADY = {"seconds", "time", "data_seconds", "step_seconds", "memory_mib"}


@dataclass(frozen=True)
class Job:
    """A command that can be killed: its module in the project and its arguments for a folder of its own."""

    module: str
    arguments: Callable[[Path], list[str]]


def jobs_of(inputs: Path) -> dict[str, Job]:
    """The jobs, by name; inputs: what `make_inputs` made."""
    videos, annotations = inputs / "raw" / "videos", inputs / "raw" / "annotations.json"
    pack = [str(videos), str(annotations), "--workers", "2", "--shard-size", "2", "--quiet"]
    values = {"data.shards": inputs / "shards", **TRAINING}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    train = ["--recipe", "demo", "--resume", "--quiet", *sets]
    trained = ["--checkpoint", str(inputs / "trained"), "--force", "--quiet"]
    return {
        "pack": Job("tools.make_shards", lambda out: [*pack, "--out", str(out / "shards")]),
        "train": Job("train.main", lambda out: [*train, "--out", str(out / "run")]),
        "eval": Job(
            "train.eval",
            lambda out: [
                *(*trained, "--shards", str(inputs / "shards")),
                *("--out", str(out / "detections.json"), "--raw", str(out / "raw.h5")),
            ],
        ),
        "predict": Job(
            "tools.predict", lambda out: [*map(str, sorted(videos.iterdir())), *trained, "--out", str(out)]
        ),
    }


# ------------------------------------------------------------------------------------------------ processes


def start(job: Job, out: Path, temporary: Path, log: Path) -> int:
    """Fork a process, the leader of a session, that runs the job; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faulthandler.dump_traceback_later(0.9 * LONGEST_SECONDS, file=2)  # where it hangs
        os.chdir(out)
        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
        sys.argv = [job.module, *job.arguments(out)]
        importlib.import_module(job.module).main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(process: int, seconds: float) -> int | None:
    """Its exit code, negative for a signal; None if it still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(min(0.002, max(0.0, deadline - time.monotonic())))


def left_processes(session: int) -> list[int]:
    """The processes of a session that still run, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def kill(process: int, *, whole_session: bool) -> None:
    """SIGKILL to the process, or at once to all that it started; the others must end by themselves."""
    for victim in left_processes(process) if whole_session else [process]:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(process, 0)
    deadline = time.monotonic() + 10
    while left := left_processes(process):
        if time.monotonic() > deadline:
            raise AssertionError(f"processes {left} outlive the one that was killed")
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------- results


def steady(value: Any) -> Any:
    """A document without the values that tell how long something took, or when."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in UNSTEADY}
    return [steady(item) for item in value] if isinstance(value, list) else value


def content(path: Path, out: Path) -> str:
    """What must be equal of a file: its sha256; of JSON without times; of a page that it is there."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    if path.suffix == ".html":
        return "a page"
    if path.suffix == ".pt":
        return hashlib.sha256(repr(list(state_values(path))).encode()).hexdigest()
    data = path.read_bytes()
    if path.name == "log.jsonl":
        events = [steady(json.loads(line)) for line in data.decode().splitlines()]
        data = json.dumps([event for event in events if event["event"] in ("train", "eval")]).encode()
    elif path.suffix == ".json":
        data = json.dumps(steady(json.loads(data))).encode()
    elif path.suffix == ".h5":
        data = repr(raw_values(path)).encode()
    return hashlib.sha256(data.replace(os.fsencode(out), b"OUT")).hexdigest()


def raw_values(path: Path) -> list[Any]:
    """All that a raw file holds, as plain values: its bytes also hold what HDF5 did not clear."""
    from train.raw_outputs import read_raw, read_raw_header

    windows = [list(vars(window).values()) for window in read_raw(path)]
    return [
        read_raw_header(path),
        [[value.tolist() if hasattr(value, "tolist") else value for value in row] for row in windows],
    ]


def state_values(path: Path) -> Iterator[Any]:
    """All that a file of DeepSpeed's holds: its bytes also depend on which tensors share memory."""
    import torch

    from train.engine import _load_safely

    waiting = [_load_safely(str(path), map_location="cpu")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield (
                str(value.dtype),
                tuple(value.shape),
                sha256_of(value.detach().contiguous().view(-1).numpy().tobytes()),
            )
        elif isinstance(value, dict):
            yield sorted(map(str, value))
            waiting += [value[key] for key in sorted(value, key=str)]
        elif isinstance(value, (list, tuple)):
            yield len(value)
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, enum.Enum):
            waiting.append(vars(value))
        else:
            yield value


def contents(out: Path) -> dict[str, str]:
    """Every file and link under a folder, and what must be equal of it."""
    paths = sorted(path for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(out)): content(path, out) for path in paths}


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """A line for each file that is missing, too many, or another."""
    kinds = {name: (name in found, name in wanted) for name in sorted({*found, *wanted})}
    words = {(True, False): "is left over", (False, True): "is missing", (True, True): "differs"}
    return [f"{name} {words[kind]}" for name, kind in kinds.items() if found.get(name) != wanted.get(name)]


# --------------------------------------------------------------------------------------------------- rounds


class Rounds:
    """The rounds in a folder: inputs and undisturbed results are made once, rounds are done once."""

    def __init__(self, work: Path, seed: int, names: Sequence[str]):
        self.work, self.seed = work, seed
        self.log = work / "rounds.jsonl"
        jobs = jobs_of(make_inputs(work))
        self.jobs = {name: jobs[name] for name in names}
        self.wanted = {name: self.undisturbed(name) for name in self.jobs}

    def undisturbed(self, name: str) -> tuple[dict[str, str], float]:
        """What a run leaves that nobody kills, and the seconds it takes."""
        record = self.work / f"{name}.json"
        if not record.exists():
            folder, start_time = self.fresh_folder(), time.monotonic()
            problems = self.finish(self.jobs[name], folder)
            assert not problems, problems
            seconds = time.monotonic() - start_time
            write_json(record, [contents(folder / "out"), seconds])
        found, seconds = json.loads(record.read_text())
        return found, seconds

    def fresh_folder(self) -> Path:
        """An empty folder for a round, with one for the results and one for temporary files."""
        folder = self.work / "round"  # the same name each time: results may hold paths
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("out", "tmp"):
            (folder / part).mkdir(parents=True)
        return folder

    def begin(self, job: Job, folder: Path) -> int:
        return start(job, folder / "out", folder / "tmp", folder / "output.txt")

    def finish(self, job: Job, folder: Path) -> list[str]:
        """Run a job to its end; what is wrong with that."""
        process = self.begin(job, folder)
        code = wait_for(process, LONGEST_SECONDS)
        if code is None:
            kill(process, whole_session=True)
        output = (folder / "output.txt").read_text(errors="replace")[-20000:]
        return [] if code == 0 else [f"exit code {code}: {output}"]

    def play(self, number: int) -> dict[str, Any]:
        """Do a round; returns its record."""
        chance = random.Random(f"{self.seed}/{number}")
        name = list(self.jobs)[number % len(self.jobs)]
        job, (wanted, seconds) = self.jobs[name], self.wanted[name]
        folder, kills = self.fresh_folder(), []
        for _ in range(chance.choice((1, 1, 2, 3))):
            moment, whole_session = chance.uniform(0, 1.1 * seconds), chance.random() < 0.5
            process = self.begin(job, folder)
            if wait_for(process, moment) is not None:
                break
            kill(process, whole_session=whole_session)
            kills.append(round(moment, 3))
        problems = self.finish(job, folder)
        problems += differences(contents(folder / "out"), wanted)
        left = [path.name for path in (folder / "tmp").iterdir() if path.name not in CACHES]
        problems += [f"temporary {name} is left over" for name in left]
        return {"round": number, "job": name, "kills": kills, "problems": problems}

    def done(self) -> dict[int, dict[str, Any]]:
        """The records of rounds that were done before."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return {record["round"]: record for record in records}

    def play_all(self, count: int) -> Iterator[dict[str, Any]]:
        """The records of the first `count` rounds, done now or before."""
        done = self.done()
        for number in range(count):
            yield done[number] if number in done else self.play_and_keep(number)

    def play_and_keep(self, number: int) -> dict[str, Any]:
        """Do a round and write its record; the folder of one with a problem stays."""
        record = self.play(number)
        if record["problems"]:
            shutil.copytree(self.work / "round", self.work / f"failed-{number}", symlinks=True)
        with self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record


def make_inputs(work: Path) -> Path:
    """Six small videos, their shards, and a run trained on them; made once."""
    inputs = work / "inputs"
    if not (inputs / "complete").exists():
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        make_shards_of(inputs)
        job = jobs_of(inputs)["train"]
        process = start(job, inputs, inputs, inputs / "output.txt")
        assert wait_for(process, LONGEST_SECONDS) == 0, (inputs / "output.txt").read_text()
        (inputs / "run").rename(inputs / "trained")
        (inputs / "complete").touch()
    return inputs


def import_all() -> None:
    """Import what jobs need, so that a forked one begins with its work."""
    import deepspeed  # noqa: F401
    import torch

    for name in ("tools.make_shards", "tools.predict", "train.eval", "train.loop", "train.main"):
        importlib.import_module(name)
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=None, help="Folder to work in; kept, and gone on with.")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        import_all()
        rounds = Rounds(options.work or Path(folder), options.seed, options.jobs)
        records = []
        for record in rounds.play_all(options.rounds):
            records.append(record)
            for problem in record["problems"]:
                print(
                    f"round {record['round']}, {record['job']} killed at {record['kills']} s: {problem}",
                    flush=True,
                )
    kills = sum(len(record["kills"]) for record in records)
    failed = sum(bool(record["problems"]) for record in records)
    print(f"{len(records)} rounds, {kills} kills, {failed} rounds with a problem")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
