"""Workers: results in order, a crash costs one video, a failure that is not a video's stops the run."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.annotations import Video
from pipeline.files import remove_left_once, write_bytes
from pipeline.packing.journal import Journal
from pipeline.packing.pack_video import Job, PackResult, reject
from pipeline.packing.workers import run_jobs


def jobs(*names: str) -> list[Job]:
    return [Job(name, name, Video(name, "s", None, ()), Path(), None, None, None) for name in names]


def slow_first(job: Job) -> tuple[PackResult, bytes]:
    time.sleep(0.3 if job.key == "a" else 0)
    return reject(job, f"by {job.key}"), job.key.encode()


def at_once(job: Job) -> tuple[PackResult, bytes]:
    return reject(job, f"by {job.key}"), b""


def crash_on_b(job: Job) -> tuple[PackResult, bytes]:
    if job.key == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return slow_first(job)


def by_process(job: Job) -> tuple[PackResult, bytes]:
    return reject(job, str(os.getpid())), b""


class WaitsForParent:
    """As a decoder whose threads fork left behind: who takes it away in another process waits forever."""

    def __init__(self):
        self.own, self.process = self, os.getpid()  # a cycle: garbage that only the collector finds

    def __del__(self):
        while os.getpid() != self.process:
            time.sleep(1)


def collect_garbage(job: Job) -> tuple[PackResult, bytes]:
    gc.collect()
    return slow_first(job)


def full_disk(job: Job) -> tuple[PackResult, bytes]:
    raise OSError(28, "No space left on device")


def test_a_worker_leaves_the_garbage_of_its_parent_alone(tmp_path):
    gc.disable()
    try:
        WaitsForParent()
        with deadline(20):
            assert reasons(Journal(tmp_path), collect_garbage, "b") == ["by b"]
    finally:
        gc.enable()


@contextmanager
def deadline(seconds: int):
    """TimeoutError when the block takes longer."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reasons(journal: Journal, task, *names: str) -> list[str | None]:
    return [result.video.reject for result in run_jobs(jobs(*names), journal, task, workers=2)]


@pytest.mark.slow
def test_results_come_in_the_order_of_the_jobs(tmp_path):
    journal = Journal(tmp_path)
    assert reasons(journal, slow_first, "a", "b", "c", "d") == ["by a", "by b", "by c", "by d"]
    assert journal.encoded_path("c").read_bytes() == b"c"


def test_while_a_result_is_in_use_as_many_more_are_made_as_there_are_workers(tmp_path):
    journal = Journal(tmp_path)

    def done() -> list[str]:
        return [name for name in "abcdef" if journal.result(name) is not None]

    with closing(run_jobs(jobs(*"abcdef"), journal, at_once, workers=2)) as results, deadline(20):
        for wanted in ("abc", "abcd"):
            next(results)
            while len(done()) < len(wanted):
                time.sleep(0.01)
            time.sleep(0.2)  # in which one too many would end
            assert "".join(done()) == wanted


def test_a_process_does_one_video_after_the_other(tmp_path):
    assert len(set(reasons(Journal(tmp_path), by_process, *"abcdefgh"))) <= 2


def test_a_process_that_is_killed_as_it_waits_costs_no_video(tmp_path):
    journal = Journal(tmp_path)
    with closing(run_jobs(jobs(*"abcdef"), journal, by_process, workers=2)) as results, deadline(20):
        next(results)
        while (last := journal.result("c")) is None:
            time.sleep(0.01)
        killed = {int(str(result.video.reject)) for result in (journal.result("b"), last) if result}
        for process in killed:
            os.kill(process, signal.SIGKILL)
        rest = [int(str(result.video.reject)) for result in results]
    assert len(rest) == 5 and not killed & set(rest[2:])


def test_no_worker_looks_through_the_folder_of_all_results(tmp_path):
    """A process does so before its first file, which costs the square of the number of results."""

    def looked(job: Job) -> tuple[PackResult, bytes]:
        before = remove_left_once.cache_info().misses
        write_bytes(journal.encoded_path(job.key), b"")
        return reject(job, f"{remove_left_once.cache_info().misses - before} times"), b""

    journal = Journal(tmp_path)
    assert reasons(journal, looked, "a", "b", "c") == ["0 times"] * 3


@pytest.mark.slow
def test_what_the_journal_has_is_not_done_again(tmp_path):
    journal = Journal(tmp_path)
    assert reasons(journal, slow_first, "a", "b") == ["by a", "by b"]
    assert reasons(journal, full_disk, "a", "b") == ["by a", "by b"]


@pytest.mark.slow
def test_a_crashing_decoder_costs_one_video(tmp_path):
    found = reasons(Journal(tmp_path), crash_on_b, "a", "b", "c")
    assert found == ["by a", "the process that decoded it was killed twice (SIGKILL)", "by c"]


def test_a_full_disk_stops_the_run_and_blames_no_video(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(ValueError, match=r"[ab]: its worker failed: .*No space left"):
        reasons(journal, full_disk, "a", "b")
    assert journal.result("a") is None and journal.result("b") is None


ENDLESS = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from pipeline.packing.journal import Journal
from pipeline.packing.workers import run_jobs
from test_pipeline_packing_workers import jobs
for _ in run_jobs(jobs("a", "b"), Journal(Path({folder!r})), lambda job: time.sleep(300), workers=2):
    pass
"""


def lives(process: str) -> bool:
    """Whether there is a process of that number; one can end while it is looked at."""
    with suppress(ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").exists()
    return False


@pytest.mark.slow
def test_workers_end_with_the_run_that_is_killed(tmp_path):
    tests = Path(__file__).parent
    code = ENDLESS.format(root=str(tests.parent), tests=str(tests), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # let the second one get as far as its watch
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(lives(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives the run that started it"
        time.sleep(0.01)
