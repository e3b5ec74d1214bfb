"""The processes of a run tell each other that they live; one that hears nothing of another ends the run.

Without it a process waits in a collective for one that was killed: NCCL for ten minutes, gloo, where the
other machine lost power, for half an hour. Each counts up in the store through which the processes met, and
watches the count of the next one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from typing import Any

import torch.distributed as dist

from train.distributed import rank, world_size

MOST_SECONDS_BETWEEN_BEATS = 5.0
LOST = "lost"  # key of the store: 1 + the rank of the first process that was lost, 0 while there is none


def _connect(seconds: float) -> Any:
    """A connection of our own to the store through which the processes met."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=max(seconds, 1.0))
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, wait_for_workers=False, timeout=limit
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a restart
    return dist.PrefixStore(f"leantad/heartbeat/{attempt}", store)  # type: ignore[attr-defined]


class _Silence:
    """Counts how many pauses in a row a number has stayed the same.

    A clock would count the time that all processes stood still in, too (Ctrl-Z, a suspended job).
    """

    def __init__(self) -> None:
        self.number, self.pauses = -1, 0

    def after(self, number: int) -> int:
        """The pauses since another number than this one was seen."""
        self.pauses = self.pauses + 1 if number == self.number else 0
        self.number = number
        return self.pauses


class _Pulse:
    """Beats in the store, and knows which process is lost; a silent store blocks `beat`, not `watch`."""

    def __init__(self, store: Any, seconds: float, stop: threading.Event):
        self.store, self.seconds, self.stop = store, seconds, stop
        self.own, self.watched = rank(), (rank() + 1) % world_size()
        self.pause = min(MOST_SECONDS_BETWEEN_BEATS, seconds / 4)
        self.most_pauses = ceil(seconds / self.pause)  # of silence
        self.lost: int | None = None  # the rank of the first that was lost
        self.answers = 0  # of the store

    def beat(self) -> None:
        """Count up and look at the next process's count, until `stop` or until one is lost."""
        silence = _Silence()
        while self.lost is None and not self.stop.wait(self.pause):
            try:
                self.store.add(f"rank {self.own}", 1)
                latest, first_lost = self.store.add(f"rank {self.watched}", 0), self.store.add(LOST, 0)
                self.answers += 1
                if silence.after(latest) > self.most_pauses and not first_lost:
                    first_lost = self.store.add(LOST, self.watched + 1)
            except RuntimeError:  # the store went with the process that had it
                first_lost = 1
            self.lost = first_lost - 1 if first_lost else None

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` with the reason once a process is."""
        silence = _Silence()
        while not self.stop.wait(self.pause):
            if silence.after(self.answers) <= self.most_pauses + 1 and self.lost is None:
                continue
            if self.own == 0:  # the store may be here: the others have to read in it who is lost
                self.stop.wait(2 * self.pause)
            if not self.stop.is_set():
                limit = f"run.lost_after_seconds is {self.seconds:g}"
                lost(f"rank {self.lost or 0} gives no sign of life ({limit})")


@contextmanager
def heartbeat(seconds: float, lost: Callable[[str], None]) -> Iterator[None]:
    """Within the block, `lost` is called with the reason, in a thread, once another process is lost.

    seconds: how long nothing is heard of a process that counts as lost. `lost` has to end this process: where
    another is missing nothing can be done any more. All processes call it; with a single one nothing happens.
    """
    if world_size() == 1:
        yield
        return
    stop = threading.Event()
    pulse = _Pulse(_connect(seconds), seconds, stop)
    threading.Thread(target=pulse.beat, name="heartbeat", daemon=True).start()
    threading.Thread(target=pulse.watch, args=(lost,), name="heartbeat watch", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
