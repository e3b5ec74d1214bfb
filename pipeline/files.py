"""Files on disk: written under a temporary name and renamed, read strictly, identified by sha256."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .text import short

DEEPEST = 64  # objects and lists within each other; our deepest files have nine
# What a killed process may leave behind beside the file that it wrote: hash of the name, machine, process.
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.([0-9a-f]{8})\.(\d+)\.tmp")
ABANDONED_SECONDS = 86400  # a partial file of another machine that nobody has written to for so long


# ------------------------------------------------------------------------------------------ temporary files


@cache
def _machine() -> str:
    """Names the machine, or the container in it, in whose numbers of processes ours is one."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return sha256_of(f"{platform.node()} {processes}")[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_left(path: Path, machine: str, process: int) -> bool:
    """Whether nobody writes to a partial file any more."""
    if machine == _machine():
        return not _is_running(process)
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def _temporary_path(path: Path) -> Path:
    """A name of this process's own beside `path`; short, whatever the length of the final one."""
    digest = hashlib.sha256(path.name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return path.with_name(f".{digest}.{_machine()}.{os.getpid()}.tmp")


def remove_left(folder: Path) -> None:
    """Remove what killed processes left in a folder under a temporary name."""
    try:
        found = [match for name in os.listdir(folder) if (match := TEMPORARY.fullmatch(name))]
    except OSError:
        return  # whoever writes there says what is wrong
    for match in found:
        path = folder / match.group()
        try:
            if _is_left(path, match[1], int(match[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # gone meanwhile, or not ours


remove_left_once = cache(remove_left)  # a folder may hold thousands of files: once, at the first write there


def check_writable(path: Path) -> None:
    """ValueError unless `path` can be written later on: a few bytes are written beside it, and removed."""
    partial = _temporary_path(path)
    try:
        with open(partial, "wb") as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); give another path") from None
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes its name, flushed to disk, when the block ends.

    When the block fails, or writes nothing, `path` stays as it was and the temporary file goes; so do those
    that killed processes left beside it.
    """
    remove_left_once(path.parent.absolute())
    partial = _temporary_path(path)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, whole or not at all: killed meanwhile, it lies there under a temporary name only."""
    temporary = _temporary_path(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        os.rename(folder, temporary)
    except FileNotFoundError:
        return
    shutil.rmtree(temporary)


# ------------------------------------------------------------------------------------------ whole or absent


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole, or not at all; line ends are written as they are."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document whole, or not at all, one value a line. ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


class _RepeatedKey(Exception):
    """A key that one JSON object has twice."""


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _RepeatedKey(
            next(name for name, count in Counter(key for key, _ in pairs).items() if count > 1)
        )
    return result


def parse_json(data: str | bytes, *, where: object) -> Any:
    """The JSON document in `data`; ValueError naming `where` if it is none, or has a key twice.

    What it holds may be of any type, and not finite: see `schemas.validated`.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        position = f"{where}, line {error.lineno}, column {error.colno}"
        raise ValueError(f"{position}: not JSON: {error.msg}; is the file whole?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except _RepeatedKey as error:
        raise ValueError(f"{where}: {short(str(error))} stands twice in one object, want it once") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply to be one of our files") from None
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise ValueError(f"{where}: {short(error, 100)}") from None
    check_depth(value, where=where)
    return value


def check_depth(value: Any, *, where: object, most: int | None = None) -> None:
    """ValueError if a document is nested more than DEEPEST deep, or one level has more than `most` values.

    Whatever walks through a document afterwards may then call itself.
    """
    level = _nested([[value]])
    for _ in range(DEEPEST):
        if not level:
            return
        values = [item.values() if item.__class__ is dict else item for item in level]
        if most is not None and sum(map(len, values)) > most:
            raise ValueError(f"{where}: more than {most} values by references to others; write them out")
        level = _nested(values)
    raise ValueError(f"{where}: nested too deeply to be one of our files")


def _nested(values: Iterable[Iterable[Any]]) -> list[Any]:
    """The objects and lists in these: in a large document most values are neither."""
    return [item for items in values for item in items if item.__class__ is dict or item.__class__ is list]


@contextmanager
def collection_paused() -> Iterator[None]:
    """While a large document becomes objects: none is garbage, and looking for some takes half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_json(path: Path) -> Any:
    """The JSON document in a file; errors as `parse_json`, and OSError."""
    return parse_json(path.read_bytes(), where=path)


def sha256_of(data: bytes | str) -> str:
    """The sha256 of bytes, or of a text's UTF-8 (lone surrogates, as in odd file names, allowed)."""
    return hashlib.sha256(
        data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    ).hexdigest()


class FilePart(NamedTuple):
    """Some of the bytes of a file: those of a member of a tar."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes; fewer than `size` if the file is shorter."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def blocks(self) -> Iterator[bytes]:
        """The same in blocks of up to 1 MiB."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            left = self.size
            while left and (block := file.read(min(left, 1 << 20))):
                left -= len(block)
                yield block


def file_sha256(file: Path | FilePart) -> str:
    """The sha256 of a file, or of a part of one, read in blocks of 1 MiB."""
    part = file if isinstance(file, FilePart) else FilePart(file, 0, file.stat().st_size)
    digest = hashlib.sha256()
    for block in part.blocks():
        digest.update(block)
    return digest.hexdigest()
