"""The run's log: log.jsonl for machines, one progress line for people."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.shards import write_text


def memory_mib(device: torch.device) -> float:
    """Peak memory so far, MiB: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class RunLog:
    """Appends events to log.jsonl and keeps a progress bar; silent on every rank but 0."""

    def __init__(self, folder: Path, *, rank: int, total_steps: int, first_step: int, quiet: bool):
        self.path = folder / "log.jsonl"
        self.active, self.quiet = rank == 0, quiet
        if self.active:
            self._drop_after(first_step)
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc="training",
            unit="step",
            disable=quiet or not self.active,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def _drop_after(self, step: int) -> None:
        """Forget what was logged after the checkpoint that the run resumes from: those steps happen again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut in half
            if step > 0 and event.get("step", 0) <= step:
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, event: str, **values: Any) -> None:
        """One line of JSON: {"event", "time", ...values}."""
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")

    def advance(
        self, loss: float, parts: dict[str, float], data_seconds: float, step_seconds: float, memory: float
    ):
        """Move the progress bar by one step."""
        if self.active:
            named = " ".join(f"{name} {value:.2f}" for name, value in parts.items())
            timing = f"data {data_seconds:.2f}s step {step_seconds:.2f}s {memory:.0f} MiB"
            self.bar.set_postfix_str(f"loss {loss:.3f} ({named}) {timing}", refresh=False)
            self.bar.update(1)

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        if self.active and not self.quiet:
            tqdm.write(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
