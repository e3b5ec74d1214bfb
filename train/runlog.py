"""The log of a run: log.jsonl for programs, a progress line for people."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.files import write_text
from pipeline.text import counted
from train.cli import Output
from train.progress import Progress, read_events


def memory_mib(device: torch.device) -> float:
    """Peak memory so far, MiB: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _is_before(event: dict[str, Any], progress: Progress) -> bool:
    """Whether an event is of the steps up to a checkpoint; its validation counts where it was finished."""
    step, again = event.get("step", 0), progress.validation_due and event["event"] == "eval"
    return progress.step > 0 and (step < progress.step or (step == progress.step and not again))


# 80 columns hold it in a long run; the bar has what a wider terminal leaves.
LINE = "{n_fmt}/{total_fmt} {desc} left {remaining} {bar}"


class RunLog:
    """Appends events to log.jsonl and keeps a progress line; does nothing on ranks other than 0."""

    def __init__(self, folder: Path, *, rank: int, total_steps: int, progress: Progress, output: Output):
        self.path, self.active, self.output = folder / "log.jsonl", rank == 0, output
        self.warned: set[str] = set()  # kinds
        if self.active:
            self._drop_after(progress)
        self.bar: tqdm[Any] = tqdm(
            total=total_steps,
            initial=progress.step,
            desc="training",
            bar_format=LINE,
            disable=output.quiet or not self.active,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def _drop_after(self, progress: Progress) -> None:
        """Remove what was logged after the checkpoint that the run resumes from, which happens again."""
        if not self.path.exists():
            return
        events, damaged = read_events(self.path)
        if damaged:
            self.output.remark(f"{self.path}: {counted(damaged, 'damaged line')} left out")
        kept = [json.dumps(event) for event in events if _is_before(event, progress)]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, event: str, **values: Any) -> None:
        """Append a line of JSON: {"event", "time", ...values}."""
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")

    def advance(
        self, *, epoch: int, loss: float, data_seconds: float, step_seconds: float, memory: float
    ) -> None:
        """Move the progress line by one step; memory: MiB. The parts of the loss are in log.jsonl."""
        if self.active:
            timing = f"data {data_seconds:.2f}s step {step_seconds:.2f}s"
            text = f"epoch {epoch} loss {loss:.4g} {timing} {memory:.0f} MiB"
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(1)

    def say(self, text: str) -> None:
        """A line for people, from rank 0 alone."""
        if self.active:
            self.output.say(text)

    def warn(self, text: str) -> None:
        """A warning for people, from rank 0 alone."""
        if self.active:
            self.output.warn(text)

    def warn_once(self, kind: str, text: str) -> None:
        """The first warning of a kind; later ones would say the same."""
        if kind not in self.warned:
            self.warned.add(kind)
            self.warn(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
