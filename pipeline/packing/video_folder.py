"""Finds the video files in a folder that the names in annotations refer to."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..text import first_names

VIDEO_SUFFIXES: tuple[str, ...] = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)
ACTIVITYNET_PREFIX = "v_"  # ActivityNet's files are named v_KEY.mp4


class VideoFolder:
    """The files under a folder, by the names that annotations use; a name never leads out of the folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = sorted(_files_under(self.folder))
        if not self.files:
            raise ValueError(f"{folder}: no file in it, want a folder of videos")
        self.by_path: dict[str, list[str]] = {}  # the whole path below the folder
        self.by_name: dict[str, list[str]] = {}  # that, or its last parts
        self.by_letters: dict[str, list[str]] = {}  # letters and digits of the name, without case and folders
        for file in self.files:
            for path in _spellings(file):
                self.by_path.setdefault(path, []).append(file)
                for tail in (path, *_tails(path)):
                    self.by_name.setdefault(tail, []).append(file)
            self.by_letters.setdefault(_letters(file), []).append(file)

    def _matches(self, name: str) -> list[str]:
        """The files that a name can mean: by path or file name, with or without suffix; else with v_ before
        it; else by a path that begins above the folder. A path never means a file in another sub-folder.
        """
        path = _normalized(name)
        found = self.by_name.get(path) or self.by_name.get(ACTIVITYNET_PREFIX + path)
        above = (self.by_path[tail] for tail in _tails(path) if tail in self.by_path)
        return found or next(above, [])

    def find(self, name: str) -> tuple[str | None, str | None]:
        """(file, None), or (None, reason); the reason names a file of the same letters, if there is one."""
        found = self._matches(name)
        if len(found) == 1:
            return found[0], None
        if found:
            return None, f"{len(found)} files have this name: {first_names(found, quoted=False)}"
        near = self.by_letters.get(_letters(name), [])
        return None, "no file of this name in the folder" + (f"; is it {near[0]!r}?" if near else "")

    def unnamed(self, names: Iterable[str]) -> tuple[str, ...]:
        """The video files that none of these names can mean."""
        named = {file for name in names for file in self._matches(name)}
        return tuple(file for file in self.files if file not in named and _is_video(file))


def _files_under(root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of all files that are not hidden."""
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _is_video(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in VIDEO_SUFFIXES


def _normalized(path: str) -> str:
    """A path with / between folders and composed letters: Windows and macOS write both otherwise."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _spellings(file: str) -> list[str]:
    """The path of a file, and that without its suffix if it is one of a video."""
    path = _normalized(file)
    return [path, os.path.splitext(path)[0]] if _is_video(path) else [path]


def _tails(path: str) -> list[str]:
    """What is left of a path without its first folder, its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[number:]) for number in range(1, len(parts))]


def _letters(path: str) -> str:
    """Letters and digits of a file's name, without case, suffix and folders."""
    name = unicodedata.normalize("NFKC", _spellings(path)[-1].rpartition("/")[2]).casefold()
    return "".join(letter for letter in name if letter.isalnum()) or name
