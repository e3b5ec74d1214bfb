"""Folders for temporary files that go with their process, even with one that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_FOLDER = "leantad-temporary-"  # begins their names, in the system's folder for temporary files


def _remove_left_folders() -> None:
    """Remove the temporary folders of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_FOLDER}*"):
        if (handle := _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the system's temporary ones, which goes when the block ends.

    A process that is killed leaves its folder: the next that wants one removes it. A lock on the folder tells
    whether somebody uses it; processes that are forked within the block hold it, too.
    """
    _remove_left_folders()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_FOLDER))
        handle = _lock(folder, fcntl.LOCK_EX)
        if handle is not None or folder.exists():  # else another process took it for one that was left
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)
        _remove_left_folders()  # children of a killed process may have held theirs until now


@contextmanager
def own_temporary_files() -> Iterator[None]:
    """What libraries and compilers write to the system's temporary folder lies in a `temporary_folder`.

    Libraries note in the environment where they write (torch in TORCHINDUCTOR_CACHE_DIR): what names the
    folder goes with it, so that a later run in this process does not make it again, without the lock on it.
    """
    before, folder_before = dict(os.environ), tempfile.tempdir
    with temporary_folder() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = folder_before
            for name in [name for name, value in os.environ.items() if str(folder) in value]:
                del os.environ[name]
                if name in before:
                    os.environ[name] = before[name]


def _lock(folder: Path, operation: int) -> int | None:
    """A handle that holds the lock of a folder; None if it is gone, locked, another user's, or knows none."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, operation)
        opened, found = os.fstat(handle), os.lstat(folder)
        if opened.st_uid == os.geteuid() and os.path.samestat(opened, found):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
