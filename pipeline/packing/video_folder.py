"""Finds the video files in a folder that the names in annotations refer to."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..text import first_names

# Endings of files in which cameras, recorders and editors keep videos; where one name means several files,
# one of these is meant before those below: previews, raw streams, intermediate files.
COMMON_SUFFIXES: tuple[str, ...] = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)
OTHER_SUFFIXES = """
    .264 .265 .3g2 .amv .asf .avc .divx .dv .dvr-ms .evo .f4v .gif .gxf .h264 .h265 .hevc .ivf .lrv .m1v
    .m2p .m2t .m2v .mjpeg .mjpg .mk3d .mod .mpe .mpv .mxf .nut .obu .ogm .qt .rm .rmvb .tod .trp .vob .vro
    .wtv .y4m
"""
VIDEO_SUFFIXES: tuple[str, ...] = (*COMMON_SUFFIXES, *OTHER_SUFFIXES.split())
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
        found = found or next(above, [])
        return [file for file in found if _suffix_of(file) in COMMON_SUFFIXES] or found

    def find(self, name: str) -> tuple[str | None, str | None]:
        """(file, None), or (None, reason); the reason names a file of the same letters, if there is one."""
        found = self._matches(name)
        if len(found) == 1:
            reason = _why_no_file(self.folder / found[0])
            return (None, reason) if reason else (found[0], None)
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


def _suffix_of(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _is_video(file: str) -> bool:
    return _suffix_of(file) in VIDEO_SUFFIXES


def _why_no_file(path: Path) -> str | None:
    """What stands under the name of a file that is none; None: a file."""
    if os.path.isfile(path):
        return None
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path.name} is a link to {os.readlink(path)}, which is not there"
    return f"{path.name} is neither a file nor a link to one"


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
