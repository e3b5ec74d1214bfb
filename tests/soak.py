"""Trains a thousand steps and predicts three hundred videos, and watches memory, descriptors and threads.

    python tests/soak.py --work /tmp/soak

Each job is a process of its own, read from outside (/proc) several times a second. What it holds in the last
fifth of the time is compared with what it held in the middle fifth, medians both: a small leak in each step
shows as a share of all that is alive. The exit code is 1 where one of them grew by more than --most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tiny_run import make_shards_of, start  # noqa: E402
from untrained_run import checkpoint, write_videos  # noqa: E402

SECONDS = 0.1  # from one look to the next
STEPS_PER_EPOCH = 2  # four videos, two a step
MOST = 0.02
WHAT = ("memory", "descriptors", "threads")


@dataclass(frozen=True)
class Sample:
    """What a process holds: bytes that are its own, open descriptors, threads."""

    memory: float
    descriptors: float
    threads: float


@dataclass(frozen=True)
class Growth:
    """Medians of the middle fifth and of the last fifth of a job's samples, by what was counted."""

    job: str
    middle: Sample
    last: Sample
    samples: int

    def share(self, name: str) -> float:
        """By how much one of WHAT grew."""
        before: float = getattr(self.middle, name)
        return (getattr(self.last, name) - before) / before

    def text(self) -> str:
        """A line for people."""
        memory = f"{self.middle.memory / 2**20:.1f} -> {self.last.memory / 2**20:.1f} MiB"
        others = [
            f"{name} {getattr(self.middle, name):g} -> {getattr(self.last, name):g}" for name in WHAT[1:]
        ]
        shares = ", ".join(f"{name} {self.share(name):+.2%}" for name in WHAT)
        return f"{self.job}: memory {memory}, {', '.join(others)} ({shares}; {self.samples} samples)"


def look(process: int) -> Sample | None:
    """A process as it is; None once it has ended."""
    folder = Path("/proc") / str(process)
    try:
        lines = (folder / "status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        if "RssAnon" not in fields:  # a zombie
            return None
        memory = int(fields["RssAnon"].split()[0]) * 1024
        return Sample(memory, len(list((folder / "fd").iterdir())), int(fields["Threads"]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def growth(job: str, samples: Sequence[Sample]) -> Growth:
    """The middle fifth against the last one."""
    count = len(samples)
    assert count >= 10, f"{job}: {count} samples, want at least 10"
    parts = samples[2 * count // 5 : 3 * count // 5], samples[4 * count // 5 :]
    middle, last = (
        Sample(**{name: statistics.median(getattr(one, name) for one in part) for name in WHAT})
        for part in parts
    )
    return Growth(job, middle, last, count)


def watch(job: str, process: subprocess.Popen[str]) -> Growth:
    """Look at a process until it ends. RuntimeError, with its last lines, if it fails."""
    samples = []
    while process.poll() is None:
        sample = look(process.pid)
        if sample is not None:
            samples.append(sample)
        time.sleep(SECONDS)
    text = "".join(process.communicate())
    if process.returncode:
        raise RuntimeError(f"{job}: exit code {process.returncode}: {text[-1000:]}")
    return growth(job, samples)


def soak_training(work: Path, steps: int) -> Growth:
    """Train so many steps, with a checkpoint and a validation ten times."""
    epochs = max(1, steps // STEPS_PER_EPOCH)
    every = {"run__eval_every": max(1, epochs // 10), "run__checkpoint_every": max(1, steps // 10)}
    process = start(make_shards_of(work), work / "run", run__epochs=epochs, run__log_every=10, **every)
    return watch(f"{steps} steps", process)


def soak_prediction(work: Path, videos: int) -> Growth:
    """Predict so many files: copies of two videos."""
    (work / "two").mkdir()
    (work / "videos").mkdir()
    originals = sorted(write_videos(work / "two").iterdir())
    for number in range(videos):
        original = originals[number % len(originals)]
        (work / "videos" / f"{number:04d}{original.suffix}").write_bytes(original.read_bytes())
    trained = ["--checkpoint", str(checkpoint(work / "trained")), "--quiet"]
    command = [str(ROOT / "tools" / "predict.py"), str(work / "videos"), *trained]
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(work / "predictions")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    return watch(f"{videos} videos", process)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or none yet")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--most", type=float, default=MOST, help="the growth that is allowed, a share")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    grown = []
    for soak, count in ((soak_training, options.steps), (soak_prediction, options.videos)):
        found = soak(options.work, count)
        print(found.text(), flush=True)
        grown += [f"{found.job}: {name}" for name in WHAT if found.share(name) > options.most]
    sys.exit(f"grew by more than {options.most:.0%}: {', '.join(grown)}" if grown else 0)


if __name__ == "__main__":
    main()
