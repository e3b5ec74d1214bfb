"""Run packing jobs in processes of their own, so that a decoder that crashes costs one video.

A worker takes the number of one job after the other and writes each result into the journal: a process for
each video would cost as much as packing a short one. Nothing but numbers and errors' texts passes between
processes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from ..files import collection_paused
from .journal import Journal
from .pack_video import Job, PackResult, reject

TRIES = 2  # a worker that was killed (no memory left, or the whole run was stopped) gets a second try
DONE = b""  # a worker's answer once a result is in the journal; any other is the text of an error

Task = Callable[[Job], tuple[PackResult, bytes]]


def run_jobs(
    jobs: Sequence[Job], journal: Journal, task: Task, *, workers: int
) -> Generator[PackResult, None, None]:
    """Do the jobs that the journal does not have yet; yields every job's result, in the order of `jobs`.

    While a result is in use, the processes go on, until `workers` more are there or in the making. Raises
    ValueError with the job's name when a worker fails in a way that is not the video's fault.
    """
    with closing(_Workers(jobs, journal, task)) as pool:
        for number, job in enumerate(jobs, 1):
            while (result := journal.result(job.key)) is None:
                pool.begin(workers - len(pool.busy))
                pool.collect()
            pool.collect(timeout=0)
            ahead = len(jobs) - number - len(pool.waiting)  # done or in the making
            pool.begin(workers - ahead)
            yield result


class _Workers:
    """Processes, each at the other end of a pipe; jobs, by number, that wait for one or are in the making."""

    def __init__(self, jobs: Sequence[Job], journal: Journal, task: Task):
        self.waiting = deque(number for number, job in enumerate(jobs) if journal.result(job.key) is None)
        self.busy: dict[Connection, int] = {}
        self._idle: list[Connection] = []
        self._processes: dict[Connection, ForkProcess] = {}
        self._jobs, self._journal, self._task = jobs, journal, task
        self._kills = Counter[int]()

    def begin(self, most: int) -> None:
        """Give at most so many of the jobs that wait to a process each."""
        for _ in range(min(most, len(self.waiting))):
            pipe = self._idle.pop() if self._idle else self._start()
            self.busy[pipe] = self.waiting.popleft()
            with suppress(BrokenPipeError):  # it was killed as it waited; `collect` will find out
                pipe.send_bytes(str(self.busy[pipe]).encode())

    def _start(self) -> Connection:
        context = multiprocessing.get_context("fork")  # cheap, and nothing has to be pickled
        pipe, theirs = context.Pipe()
        arguments = (self._jobs, self._journal, self._task, theirs)
        self._processes[pipe] = context.Process(target=_work, args=arguments, daemon=True)
        with collection_paused():  # closing a decoder, there, waits for threads that a fork does not have
            self._processes[pipe].start()
        theirs.close()
        return pipe

    def collect(self, timeout: float | None = None) -> None:
        """Wait for answers, at most so many seconds: jobs are then done, wait once more, or are given up."""
        answered = wait(self.busy, timeout)
        for pipe in [pipe for pipe in self.busy if pipe in answered]:
            number = self.busy.pop(pipe)
            try:
                answer = pipe.recv_bytes()
            except (EOFError, ConnectionResetError):
                self._collect_ended(pipe, number)
                continue
            if answer != DONE:
                raise ValueError(f"{self._jobs[number].source}: its worker failed: {answer.decode()}")
            self._idle.append(pipe)

    def _collect_ended(self, pipe: Connection, number: int) -> None:
        process = self._processes.pop(pipe)
        process.join()
        job, code = self._jobs[number], process.exitcode or 0
        if self._journal.result(job.key) is not None:
            return
        if code >= 0:
            raise ValueError(f"{job.source}: its worker failed: exit code {code}")
        self._kills[number] += 1
        if self._kills[number] < TRIES:
            self.waiting.appendleft(number)
        else:
            name = signal.Signals(-code).name
            text = f"the process that decoded it was killed twice ({name})"
            self._journal.commit(reject(job, text), b"")

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for process in self._processes.values():
            process.kill()
            process.join()


def _work(jobs: Sequence[Job], journal: Journal, task: Task, pipe: Connection) -> None:
    gc.freeze()  # with all that the parent left; from here on the collector may run
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    exit_with_parent()
    tempfile.tempdir = str(journal.temporary)  # this process may be killed; the journal's end is its end
    while True:
        job = jobs[int(pipe.recv_bytes())]
        try:
            journal.commit(*task(job))
        except Exception as error:
            pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
            sys.exit(1)
        pipe.send_bytes(DONE)


def exit_with_parent() -> None:
    """Let this process end as soon as its parent has: nobody would read what it writes."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
