"""Locates a data set (folder, tar, glob, brace range, URL), and fetches files behind URLs into a cache.

URLs are read by fsspec: http(s)://, s3:// (needs the package s3fs), gs:// (gcsfs), hf:// (huggingface_hub)
and whatever else fsspec knows. `pipe:COMMAND` is a shell command of the user's own that prints the file, such
as `pipe:aws s3 cp s3://bucket/set/{00000..00007}.tar -`. The cache is $LEANTAD_CACHE or ~/.cache/leantad. A
file appears there only when it is whole.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .files import replacing, sha256_of
from .records import DESCRIPTION
from .temporary_folder import temporary_folder
from .text import short

SCHEME = re.compile(r"^([a-z0-9]+://|pipe:)", re.IGNORECASE)
TAR_NAME = re.compile(r"[^/\s'\"]+\.tar\b")

PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
BUSY = {408, 429, 500, 502, 503, 504}  # HTTP status codes of a server that may answer later
BROKEN = {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}  # a connection that stood, and does no more
TRIES = 8  # of one file, for servers that are busy or silent
WRONG_TRIES = 4  # for servers that deliver something else, such as an error page
DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 30.0  # after the first try; each pause is twice as long: 2 min
CONNECT_SECONDS, SILENCE_SECONDS = 30.0, 300.0  # longest wait for a connection, and for its next bytes
DESCRIPTION_BYTES = 128 << 20  # of a dataset.json: 200,000 videos; an endless one is left there
INDEX_BYTES = 16 << 20  # of the index of a tar
PART_BYTES = 1 << 20  # read and written at once

Check = Callable[[Path], None]  # ValueError if a fetched file is not what it should be


class _Unwanted(Exception):
    """What was delivered is not the file that was wanted."""


@dataclass(frozen=True)
class Location:
    """The folder of a data set, or the URL of its dataset.json; and the tars chosen (None: all)."""

    folder: Path | None
    url: str | None
    chosen: tuple[str, ...] | None

    def url_of(self, name: str) -> str:
        """The URL of the file `name` that lies beside dataset.json."""
        assert self.url is not None
        head, _, tail = self.url.rpartition(DESCRIPTION)
        return head + name + tail


def locate(location: str | Path) -> Location:
    """Find the data set that `location` names.

    Raises ValueError when nothing is there, or when the tars named belong to more than one data set.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if SCHEME.match(text):
        return _locate_url(text)
    path = Path(text)
    if path.is_dir():
        return Location(path, None, None)
    if path.name == DESCRIPTION and path.is_file():
        return Location(path.parent, None, None)
    tars = [path] if path.is_file() else _matches(text)
    folders = {tar.parent for tar in tars}
    if len(folders) > 1:
        raise ValueError(f"{text}: names tars in {len(folders)} folders, want the tars of one data set")
    return Location(folders.pop(), None, tuple(sorted(tar.name for tar in tars)))


def _matches(text: str) -> list[Path]:
    tars: list[Path] = []
    for pattern in _expand(text):
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not found:
            raise ValueError(f"{pattern}: not here, want a folder written by make-shards, or tars in one")
        tars += [Path(name) for name in found]
    return tars


def _expand(text: str) -> list[str]:
    """The names that a brace range such as {00000..00007} stands for."""
    import braceexpand

    try:
        return list(braceexpand.braceexpand(text))
    except ValueError:
        raise ValueError(
            f"{text}: braces do not match, want for example 'shards/{{00000..00007}}.tar'"
        ) from None


def _locate_url(text: str) -> Location:
    descriptions, chosen = set(), []
    for url in _expand(text):
        name = url if url.startswith("pipe:") else url.partition("?")[0]
        if DESCRIPTION in name:
            descriptions.add(url)
        elif found := list(TAR_NAME.finditer(name)):
            tar = found[-1]
            descriptions.add(url[: tar.start()] + DESCRIPTION + url[tar.end() :])
            chosen.append(tar.group())
        elif url.startswith("pipe:"):
            raise ValueError(
                f"{url}: no tar and no {DESCRIPTION} in this command, want the one that prints a tar"
            )
        else:
            path, mark, query = url.partition("?")
            descriptions.add(f"{path.rstrip('/')}/{DESCRIPTION}{mark}{query}")
    if len(descriptions) > 1:
        raise ValueError(f"{text}: names tars of {len(descriptions)} data sets, want those of one")
    return Location(None, descriptions.pop(), tuple(sorted(chosen)) or None)


def cache_root() -> Path:
    """The folder that holds what was fetched."""
    return Path(os.environ.get("LEANTAD_CACHE") or Path.home() / ".cache" / "leantad")


def cache_folder(url: str, description: bytes) -> Path:
    """The cache folder of one data set as it is now: another dataset.json has another, so no tar is stale."""
    digest = sha256_of(url.encode() + b"\0" + description)[:20]
    return cache_root() / digest


def fetch(url: str, target: Path, *, most: int | None = None, check: Check | None = None) -> None:
    """Copy what `url` gives to the file `target`, under a temporary name until it is whole and checked.

    most: bytes that it can have at most. check: called with the fetched file before it gets its name.
    Raises ValueError with the URL and the reason when it cannot be read, or stays something else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target
    try:
        with replacing(target) as partial:
            _fetch_until_right(url, partial, most, check)
    except Exception as error:  # every file system of fsspec has exceptions of its own
        where, reason = short(url, 200, quoted=False), _reason(url, error, partial)
        raise ValueError(f"{where}: could not be fetched ({reason})") from None


def fetch_bytes(url: str, *, most: int, check: Callable[[bytes], None]) -> bytes:
    """What `url` gives, of at most `most` bytes, checked as `fetch` does; nothing stays in the cache."""
    with temporary_folder() as folder:
        path = folder / "fetched"
        fetch(url, path, most=most, check=lambda fetched: check(fetched.read_bytes()))
        return path.read_bytes()


def _fetch_until_right(url: str, partial: Path, most: int | None, check: Check | None) -> None:
    """Try, with growing pauses; what was delivered stays for the next try unless it is wrong."""
    copy = _copy_pipe if url.startswith("pipe:") else _copy_url
    limit = math.inf if most is None else most
    for attempt in range(1, TRIES + 1):
        try:
            copy(url, partial, limit)
            if check is not None:
                _check(partial, check)
            return
        except Exception as error:
            tries = min(TRIES, WRONG_TRIES) if isinstance(error, _Unwanted) else TRIES
            if attempt >= tries or not _may_succeed_later(error):
                raise
        time.sleep(min(DELAY_SECONDS * 2 ** (attempt - 1), LONGEST_DELAY_SECONDS))


def _check(partial: Path, check: Check) -> None:
    try:
        check(partial)
    except ValueError as error:
        begin = partial.read_bytes()[:200] if partial.stat().st_size < PART_BYTES else b""
        partial.unlink()
        page = "; it is a web page" if b"<html" in begin.lower() or b"<!doctype" in begin.lower() else ""
        raise _Unwanted(f"{short(error, 200)}{page}") from None


def _copy_pipe(url: str, target: Path, most: float) -> None:
    import webdataset

    with webdataset.gopen(url, "rb") as stream, open(target, "wb") as file:
        while part := stream.read(PART_BYTES):
            _write(part, file, most)


def _write(part: bytes, file: BinaryIO, most: float) -> None:
    file.write(part)
    if file.tell() > most:
        raise ValueError(f"more than the {most} bytes that it can have")


def _copy_url(url: str, target: Path, most: float) -> None:
    import fsspec
    from fsspec.asyn import sync

    is_http = _scheme(url) in ("http", "https")
    filesystem, path = fsspec.url_to_fs(url, **(_http_options() if is_http else {}))
    if is_http:
        sync(filesystem.loop, _download, filesystem, path, target, most)
        return
    size = filesystem.size(path)
    if size is not None and size > most:
        raise ValueError(f"has {size} bytes, more than the {most} that it can have")
    filesystem.get_file(path, str(target))


async def _download(filesystem: Any, url: str, target: Path, most: float) -> None:
    """Fetch by HTTP, from where an earlier try has stopped if the server can do that."""
    begun = target.stat().st_size if target.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), headers=headers) as answer:
        if answer.status == 416:  # there is no more of it: what is here is another file
            target.unlink()
            raise _Unwanted("the server has another file than before")
        answer.raise_for_status()
        resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-")
        with open(target, "ab" if answer.status == 206 and resumed else "wb") as file:
            async for part in answer.content.iter_chunked(PART_BYTES):
                _write(part, file, most)


def _http_options() -> dict[str, Any]:
    """fsspec's options for http: the URL as it was written, proxies of the environment, no time limit.

    aiohttp would otherwise break off a download after five minutes.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"encoded": True, "client_kwargs": {"trust_env": True, "timeout": timeout}}


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


def _may_succeed_later(error: Exception) -> bool:
    """Whether a server that did this may do better: busy, silent, gone in the middle, or another file."""
    # asyncio's is another class than the built-in one up to Python 3.10
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, _Unwanted)):
        return True
    if isinstance(error, OSError) and error.errno in BROKEN:  # aiohttp's is no ConnectionResetError
        return True
    names = {kind.__name__ for kind in type(error).__mro__}  # aiohttp's, where it is installed
    return bool(names & {"ClientPayloadError", "ServerDisconnectedError"}) or _status(error) in BUSY


def _status(error: Exception) -> int | None:
    """The HTTP status that aiohttp's error states."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _reason(url: str, error: Exception, partial: Path) -> str:
    """What went wrong, without the temporary name that the file had."""
    if isinstance(error, ImportError):
        package = PACKAGES.get(_scheme(url))
        return f"pip install {package}" if package else short(error, 200)
    if exit_code := re.search(r"exit \d+", str(error) if url.startswith("pipe:") else ""):
        return exit_code.group()
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if (status := _status(error)) == 404:
        return "no such file"
    if status:
        return f"HTTP {status}"
    text = str(error).removeprefix(f"{partial}: ")
    return short(text, 200, quoted=False) or type(error).__name__
