"""One writer at a time: a lock on a folder or file that ends with the process that holds it.

The kernel holds the lock (fcntl, as NFS and most cluster file systems know it), so that a killed process, or
a machine that went down, leaves none. The file says who holds it: for messages, and for file systems whose
locks are unknown on other machines. There a holder on this machine is looked up, and one elsewhere counts as
alive, unless it is an earlier start of the same Slurm job, which a requeue has ended.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # the file system has none
# mount options by which other machines do not see a lock
LOCAL_LOCKS = {"nolock", "localflock", "local_lock=all", "local_lock=posix"}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    ticks: when it was started, as the kernel counts it. job, restarts: of Slurm; a requeue counts them up.
    """

    host: str
    pid: int
    ticks: int
    job: str
    restarts: int
    since: str

    @staticmethod
    def this_process() -> Holder:
        """The one that asks."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return Holder(socket.gethostname(), os.getpid(), _ticks(os.getpid()), job, int("0" + restarts), since)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_gone(self) -> bool:
        """Whether it is certain, without a lock of the kernel, that it runs no more."""
        if self.host == socket.gethostname():
            return _ticks(self.pid) != self.ticks
        return self.was_requeued()

    def was_requeued(self) -> bool:
        """Whether it belongs to an earlier start of the Slurm job that runs here now: a requeue ended it."""
        this = Holder.this_process()
        return bool(self.job) and self.job == this.job and self.restarts < this.restarts


def _ticks(pid: int) -> int:
    """When a process of this machine was started; 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _read_holder(file: TextIO) -> Holder | None:
    """Who wrote its name into the lock; None if it is empty, or cut."""
    file.seek(0)
    try:
        return Holder(**json.loads(file.read(10_000)))
    except (ValueError, TypeError):
        return None


def _locks_are_local(path: Path) -> bool:
    """Whether the file system of a path is mounted so that other machines do not see its locks."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    above = [fields for fields in mounts if path.resolve().is_relative_to(fields[1])]
    options = max(above, key=lambda fields: len(fields[1]))[3] if above else ""
    return not LOCAL_LOCKS.isdisjoint(options.split(","))


@contextmanager
def locked(path: Path, *, where: Path, what: str) -> Iterator[Holder | None]:
    """Hold the lock `path`; yields who held it last, if that process did not end by itself.

    where: what is written to, and what: the command that writes, for the message. ValueError if another
    process holds the lock; OSError if the file cannot be written.
    """
    file = _open_locked(path, where=where, what=what)
    try:
        last = _read_holder(file)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(Holder.this_process())))
        file.flush()
        yield last
    finally:
        with suppress(OSError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                path.unlink()
        file.close()


def _open_locked(path: Path, *, where: Path, what: str) -> TextIO:
    """The lock's file, locked, and still under its name."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closing it ends the lock
        try:
            if not _lock(file, path):
                holder = _read_holder(file)
                who = f" ({holder})" if holder else ""
                elsewhere = holder is not None and holder.host != socket.gethostname()
                gone = f"; if that machine is gone for good, remove {path}" if elsewhere else ""
                raise ValueError(f"{where}: another {what} is writing here{who}, want one at a time{gone}")
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it just now


def _lock(file: TextIO, path: Path) -> bool:
    """Lock the file; False if another process holds it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known_everywhere = not _locks_are_local(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            holder = _read_holder(file)
            if holder is None or not holder.was_requeued():
                return False
            path.unlink(missing_ok=True)  # the server keeps the lock of a machine that went down for a while
            return True
        known_everywhere = False
    holder = None if known_everywhere else _read_holder(file)
    return holder is None or holder.is_gone()


@contextmanager
def writing_folder(folder: Path, what: str) -> Iterator[Holder | None]:
    """`locked` for a folder, which is made; a new one goes again if there is an error and nothing in it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / ".lock", where=folder, what=what) as last:
            yield last
    except Exception:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


@contextmanager
def writing_file(path: Path, what: str) -> Iterator[Holder | None]:
    """`locked` for a file, by way of a file beside it."""
    with locked(path.with_name(f".{path.name[:100]}.lock"), where=path, what=what) as last:
        yield last
