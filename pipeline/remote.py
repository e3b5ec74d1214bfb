"""Turn a location (folder, tar, glob, brace range, URL) into files on disk; URLs are fetched into a cache.

URLs are opened by webdataset's gopen: http(s)://, gs://, hf://, sftp://, and `pipe:COMMAND` (a shell
command of the user's own, such as `pipe:aws s3 cp s3://bucket/set/{00000..00007}.tar -`); s3:// runs the
aws command line. The cache is $LEANTAD_CACHE or ~/.cache/leantad. A file appears there only when it is
whole.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .files import replacing, sha256_of
from .records import DESCRIPTION

SCHEME = re.compile(r"^([a-z0-9]+://|pipe:)", re.IGNORECASE)
TAR_NAME = re.compile(r"[^/\s'\"]+\.tar\b")


@dataclass(frozen=True)
class Source:
    """Where a data set lies: a folder, or the URL of its dataset.json; and the tars chosen (None: all)."""

    folder: Path | None
    url: str | None
    chosen: tuple[str, ...] | None

    def url_of(self, name: str) -> str:
        """The URL of the file `name` that lies beside dataset.json."""
        assert self.url is not None
        head, _, tail = self.url.rpartition(DESCRIPTION)
        return head + name + tail


def locate(location: str | Path) -> Source:
    """Find the data set that `location` names.

    Raises ValueError when nothing is there, or when the tars named lie in more than one place.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if SCHEME.match(text):
        return _locate_url(text)
    path = Path(text)
    if path.is_dir():
        return Source(path, None, None)
    if path.name == DESCRIPTION and path.is_file():
        return Source(path.parent, None, None)
    tars = [path] if path.is_file() else _matches(text)
    folders = {tar.parent for tar in tars}
    if len(folders) > 1:
        raise ValueError(f"{text}: names tars in {len(folders)} folders, want the tars of one data set")
    return Source(folders.pop(), None, tuple(sorted(tar.name for tar in tars)))


def _matches(text: str) -> list[Path]:
    tars = []
    for pattern in _expand(text):
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not found:
            raise ValueError(f"{pattern}: not here, want a folder written by make-shards, or tars in one")
        tars += [Path(name) for name in found]
    return tars


def _expand(text: str) -> list[str]:
    from braceexpand import UnbalancedBracesError, braceexpand

    try:
        return list(braceexpand(text))
    except UnbalancedBracesError:
        raise ValueError(
            f"{text}: braces do not match, want for example 'shards/{{00000..00007}}.tar'"
        ) from None


def _locate_url(text: str) -> Source:
    described, chosen = set(), []
    for url in _expand(text):
        name = url if url.startswith("pipe:") else url.partition("?")[0]
        if DESCRIPTION in name:
            described.add(url)
        elif found := list(TAR_NAME.finditer(name)):
            tar = found[-1]
            described.add(url[: tar.start()] + DESCRIPTION + url[tar.end() :])
            chosen.append(tar.group())
        elif url.startswith("pipe:"):
            raise ValueError(
                f"{url}: no tar and no {DESCRIPTION} in this command, want the one that prints a tar"
            )
        else:
            path, mark, query = url.partition("?")
            described.add(f"{path.rstrip('/')}/{DESCRIPTION}{mark}{query}")
    if len(described) > 1:
        raise ValueError(f"{text}: names {len(described)} places, want the tars of one data set")
    return Source(None, described.pop(), tuple(sorted(chosen)) or None)


def cache_root() -> Path:
    """The folder that holds what was fetched."""
    return Path(os.environ.get("LEANTAD_CACHE") or Path.home() / ".cache" / "leantad")


def cache_folder(url: str, description: bytes) -> Path:
    """The cache folder of one data set as it is now: another dataset.json has another, so no tar is stale."""
    digest = sha256_of(url.encode() + b"\0" + description)[:20]
    return cache_root() / digest


def fetch(url: str, target: Path) -> None:
    """Copy what `url` gives to the file `target`, under a temporary name until it is whole.

    Raises ValueError with the URL and the reason when it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as partial, _open_url(url) as stream, open(partial, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    except (OSError, ImportError) as error:
        reason = re.search(r"exit \d+", str(error))
        raise ValueError(f"{url}: could not be fetched ({reason.group() if reason else error})") from None


def _open_url(url: str):
    import webdataset

    webdataset.gopen_schemes.setdefault("s3", _open_s3)
    return webdataset.gopen(url, "rb")


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192):
    from webdataset.gopen import Pipe

    return Pipe(["aws", "s3", "cp", "--no-progress", url, "-"], mode=mode, bufsize=bufsize)
