"""Run packing jobs in processes of their own, so that a decoder that crashes costs one video.

Each worker does one video and writes the result into the journal; nothing else passes between processes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from ..files import collection_paused
from .journal import Journal
from .pack_video import Job, PackResult, reject

TRIES = 2  # a worker that was killed (no memory left, or the whole run was stopped) gets a second try

Task = Callable[[Job], tuple[PackResult, bytes]]


@dataclass
class _Worker:
    job: Job
    process: ForkProcess
    error_pipe: Connection  # receives the text of an error that is not the video's fault


def run_jobs(
    jobs: Sequence[Job], journal: Journal, task: Task, *, workers: int
) -> Generator[PackResult, None, None]:
    """Do the jobs that the journal does not have yet; yields every job's result, in the order of `jobs`.

    While a result is in use, the processes go on, until `workers` more are there or in the making. Raises
    ValueError with the job's name when a worker fails in a way that is not the video's fault.
    """
    waiting = deque(job for job in jobs if journal.result(job.key) is None)
    tries: dict[str, int] = {}
    running: list[_Worker] = []

    def begin(most: int) -> None:
        for _ in range(min(most, len(waiting))):
            running.append(_start(waiting.popleft(), journal, task))

    try:
        for number, job in enumerate(jobs, 1):
            while (result := journal.result(job.key)) is None:
                begin(workers - len(running))
                wait([worker.process.sentinel for worker in running])
                _collect_ended(running, journal, tries, waiting)
            _collect_ended(running, journal, tries, waiting)
            ahead = len(jobs) - number - len(waiting)  # done or in the making
            begin(workers - ahead)
            yield result
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _start(job: Job, journal: Journal, task: Task) -> _Worker:
    context = multiprocessing.get_context("fork")  # cheap, and nothing has to be pickled
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_job, args=(job, journal, task, sender), daemon=True)
    with collection_paused():  # closing a decoder, there, waits for threads that a fork does not have
        process.start()
    sender.close()
    return _Worker(job, process, receiver)


def _run_job(job: Job, journal: Journal, task: Task, error_pipe: Connection) -> None:
    gc.freeze()  # with all that the parent left; from here on the collector may run
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    exit_with_parent()
    tempfile.tempdir = str(journal.temporary)  # this process may be killed; the journal's end is its end
    try:
        journal.commit(*task(job))
    except Exception as error:
        error_pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
        sys.exit(1)


def exit_with_parent() -> None:
    """Let this process end as soon as its parent has: nobody would read what it writes."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _collect_ended(
    running: list[_Worker], journal: Journal, tries: dict[str, int], waiting: deque[Job]
) -> None:
    """Take those that have ended from `running`."""
    for worker in [worker for worker in running if not worker.process.is_alive()]:
        running.remove(worker)
        _collect(worker, journal, tries, waiting)


def _collect(worker: _Worker, journal: Journal, tries: dict[str, int], waiting: deque[Job]) -> None:
    """After a worker has ended: its job is done, goes back to `waiting`, or is given up."""
    worker.process.join()
    job, code = worker.job, worker.process.exitcode or 0
    if journal.result(job.key) is not None:
        return
    if code >= 0:
        text = worker.error_pipe.recv_bytes().decode() if worker.error_pipe.poll() else f"exit code {code}"
        raise ValueError(f"{job.source}: its worker failed: {text}")
    tries[job.key] = tries.get(job.key, 0) + 1
    if tries[job.key] < TRIES:
        waiting.appendleft(job)
    else:
        name = signal.Signals(-code).name
        journal.commit(reject(job, f"the process that decoded it was killed twice ({name})"), b"")
