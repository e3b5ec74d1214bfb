"""Files on disk: written under a temporary name and renamed, read strictly, identified by sha256."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .text import short

DEEPEST = 64  # objects and lists within each other; our deepest files have nine
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.\d+\.tmp")  # what a killed process may leave behind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes its name, flushed to disk, when the block ends.

    When the block fails, or writes nothing, `path` stays as it was and the temporary file goes. The temporary
    name is short, whatever the length of the final one.
    """
    digest = hashlib.sha256(path.name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    partial = path.with_name(f".{digest}.{os.getpid()}.tmp")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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

    What it holds may be of any type, and not finite: see `forms.validated`.
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
    level = [value]
    for _ in range(DEEPEST):
        inner = [item.values() if item.__class__ is dict else item for item in level if _is_nested(item)]
        if not inner:
            return
        level = [item for items in inner for item in items]
        if most is not None and len(level) > most:
            raise ValueError(f"{where}: more than {most} values by references to others; write them out")
    raise ValueError(f"{where}: nested too deeply to be one of our files")


def _is_nested(value: Any) -> bool:
    return value.__class__ is dict or value.__class__ is list


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


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in parts of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
