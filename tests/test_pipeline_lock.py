"""One writer at a time; a dead one leaves no lock, wherever it died."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.lock import Holder, writing_file, writing_folder

HOLD = "import sys, time; from pathlib import Path; from pipeline.lock import writing_folder\n"
HOLD += "with writing_folder(Path(sys.argv[1]), 'train'): print('held', flush=True); time.sleep(100)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def left_by(folder: Path, **changes: object) -> Holder:
    """What a process that was killed leaves: its name, and no lock of the kernel."""
    folder.mkdir(exist_ok=True)
    holder = replace(Holder.this_process(), **changes)
    (folder / ".lock").write_text(json.dumps(asdict(holder)))
    return holder


def without_kernel_locks(monkeypatch) -> None:
    def lockf(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", lockf)


def test_a_second_writer_is_refused_by_name_and_the_lock_goes_with_the_first(other, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"run: another train is .* \(process {other.pid} on .* since 20"):
        writing_folder(run, "train").__enter__()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with writing_folder(run, "train") as last:
        assert last is not None and last.pid == other.pid
    assert list(run.iterdir()) == []


def test_a_new_folder_into_which_nothing_was_written_goes_again(tmp_path):
    with pytest.raises(ValueError, match="bad input"), writing_folder(tmp_path / "a" / "b", "train"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
        raise ValueError("bad input")
    assert not (tmp_path / "a").exists()
    with writing_folder(tmp_path / "a" / "b", "train") as last:
        (tmp_path / "a" / "b" / "result").write_text("")
    assert last is None and [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_a_file_is_locked_beside_it(tmp_path):
    with writing_file(tmp_path / "d.json", "eval"):
        assert [path.name for path in tmp_path.iterdir()] == [".d.json.lock"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="d.json.lock"), writing_file(tmp_path / "no" / "d.json", "eval"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', "nonsense" * 10_000])
def test_a_lock_file_of_whatever_content_is_taken_over(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with writing_folder(tmp_path, "train") as last:
        assert last is None and json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_somebody_removed_and_another_took_stays_the_others(tmp_path):
    with writing_folder(tmp_path, "train"):
        (tmp_path / ".lock").rename(tmp_path / "removed")
        (tmp_path / ".lock").write_text("of another")
    assert (tmp_path / ".lock").read_text() == "of another"


def test_a_requeue_on_another_machine_goes_on_although_the_server_keeps_the_old_lock(
    other, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    text = json.loads((run / ".lock").read_text())
    (run / ".lock").write_text(json.dumps(text | {"host": "node7", "job": "55"}))
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    with pytest.raises(
        ValueError, match=r"on node7 since .*; if that machine is gone for good, remove .*lock"
    ):
        writing_folder(run, "train").__enter__()  # two steps of one job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with writing_folder(run, "train"):
        holder = json.loads((run / ".lock").read_text())
        assert holder["pid"] == os.getpid() and holder["restarts"] == 1
    (run / ".lock").write_text("")


def test_a_holder_on_another_machine_is_gone_where_the_kernel_knows_no_lock(tmp_path):
    holder = left_by(tmp_path, host="node7")
    with writing_folder(tmp_path, "train") as last:
        assert last == holder


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),  # this very process, which is alive
        ({"pid": 2**22 + 1}, False),
        ({"ticks": 1}, False),  # its number is that of another process now
        ({"host": "node7"}, True),  # nobody can know
        ({"host": "node7", "job": "55"}, False),  # an earlier start of this job
        ({"host": "node7", "job": "55", "restarts": 1}, True),
        ({"host": "node7", "job": "56"}, True),
    ],
)
@pytest.mark.parametrize("locks", ["none", "of one machine"])
def test_without_locks_that_all_machines_know_the_holder_decides(
    tmp_path, monkeypatch, changes, refused, locks
):
    if locks == "none":
        without_kernel_locks(monkeypatch)
    else:
        monkeypatch.setattr(lock, "_locks_are_local", lambda path: True)
    holder = left_by(tmp_path, **changes)
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if refused:
        with pytest.raises(ValueError, match="another train is writing here"):
            writing_folder(tmp_path, "train").__enter__()
        assert (tmp_path / ".lock").is_file()
    else:
        with writing_folder(tmp_path, "train") as last:
            assert last == holder


def test_mount_options_say_whose_locks_they_are(tmp_path, monkeypatch):
    mounts = f"x / overlay rw 0 0\ny {tmp_path} nfs rw,nolock 0 0\nz {tmp_path}/in lustre rw,flock 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: mounts)
    assert lock._locks_are_local(tmp_path / "a") and not lock._locks_are_local(tmp_path / "in" / "a")
    assert not lock._locks_are_local(Path("/usr"))
