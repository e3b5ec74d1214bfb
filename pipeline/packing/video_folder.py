"""Finds the video files in a folder that the names in annotations refer to."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

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
    """The files under a folder, by the names that annotations use; only its own links lead out of it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else "no such folder"
            raise ValueError(f"{folder}: {found}, want a folder of videos")
        self.files = sorted(files_under(self.folder))
        if not self.files:
            raise ValueError(f"{folder}: no file in it, want a folder of videos")
        self.by_path: dict[str, list[str]] = {}  # the whole path below the folder
        self.by_name: dict[str, list[str]] = {}  # that, or its last parts
        self.by_simplified: dict[str, list[str]] = {}  # the name without folders, see simplified_name
        self.by_letters: dict[str, list[str]] = {}  # letters and digits of the name, without case and folders
        for file in self.files:
            for path in _spellings(file):
                self.by_path.setdefault(path, []).append(file)
                for tail in (path, *_tails(path)):
                    self.by_name.setdefault(tail, []).append(file)
            self.by_simplified.setdefault(simplified_name(_name(file)), []).append(file)
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

    def _similar(self, name: str) -> list[str]:
        """The files of the same simplified name, none in another sub-folder, or with another suffix."""
        path = _normalized(name)
        simplified = simplified_name(_name(path))
        files = [file for file in self.by_simplified.get(simplified, []) if simplified]
        return [file for file in files if _same_folders(path, _normalized(file)) and _same_suffix(name, file)]

    def find(self, name: str, taken: Collection[str] = ()) -> tuple[str | None, str | None]:
        """(file, None), or (None, reason); the reason names a file of the same letters, if there is one.

        taken: files that other names mean, which a name that is only similar cannot mean.
        """
        found = self._matches(name) or [file for file in self._similar(name) if file not in taken]
        if len(found) == 1:
            reason = _why_no_file(self.folder / found[0])
            return (None, reason) if reason else (found[0], None)
        if found:
            return None, f"{len(found)} files have this name: {first_names(found, quoted=False)}"
        near = self.by_letters.get(_letters(name), [])
        return None, "no file of this name in the folder" + (f"; is it {near[0]!r}?" if near else "")

    def find_each(self, names: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
        """`find` for all names of an annotation file; a file goes to the name that is most like its own."""
        names = list(names)
        taken = {file for name in names for file in self._matches(name)}
        return {name: self.find(name, taken) for name in names}

    def unnamed(self, names: Iterable[str]) -> tuple[str, ...]:
        """The video files that none of these names can mean."""
        named = {file for name in names for file in self._matches(name) or self._similar(name)}
        return tuple(file for file in self.files if file not in named and _is_video(file))


class VideoFiles:
    """Single files, by the ends of their paths."""

    def __init__(self, files: Iterable[Path]):
        self.by_tail: dict[str, list[Path]] = {}
        for path, file in {_normalized(os.path.abspath(file)): file for file in files}.items():
            for spelling in {path, os.path.splitext(path)[0]}:
                for tail in _tails(spelling):
                    self.by_tail.setdefault(tail, []).append(file)

    def find(self, key: str, names: Iterable[str]) -> list[Path]:
        """The files whose paths have the longest end in common with a video's key, or another of its names.

        It is a whole name, or has as many folders as the key: `va/x` never means `vb/x.mp4`.
        """
        least, found = len(PurePosixPath(_normalized(key)).parts), []
        for parts in (PurePosixPath(_normalized(name)).parts for name in (key, *names)):
            tails = ("/".join(parts[i:]) for i in range(max(len(parts) - least, 0) + 1))
            found += [(tail.count("/"), self.by_tail[tail]) for tail in tails if tail in self.by_tail]
        return max(found, key=lambda each: (each[0], -len(each[1])), default=(0, []))[1]


def files_under(root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of all files that are not hidden, nor in a hidden folder below it.

    Links to folders are followed after the folders that stand there themselves, and a folder is entered
    once, by the first way that leads to it: a link neither goes round in circles nor gives files a second
    name.
    """
    starts, entered = [os.fspath(root)], set()
    for start in starts:  # grows by the links that are found
        for folder, folders, names in os.walk(start):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            # sorted, so that the first way is the same everywhere
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += filter(os.path.islink, [os.path.join(folder, name) for name in folders])
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


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _same_folders(path: str, other: str) -> bool:
    """Whether the folders of the one end with those of the other."""
    shorter, longer = sorted((path.split("/")[:-1], other.split("/")[:-1]), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def _same_suffix(name: str, file: str) -> bool:
    """Whether a name has no suffix of a video, or that of the file."""
    stated = _suffix("._").search(name)
    return stated is None or stated[1].lower() == os.path.splitext(file)[1].lower().removeprefix(".")


def is_named(name: str, file: str) -> bool:
    """Whether a name is that of a file, given with more or fewer folders, and with or without its suffix."""
    path = _normalized(name)
    paths = _spellings(file)
    return any(path in (each, *_tails(each)) or each in _tails(path) for each in paths)


@cache
def _suffix(separators: str) -> re.Pattern[str]:
    suffixes = "|".join(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
    return re.compile(rf"(?<=.)[{separators}]({suffixes})\Z", re.IGNORECASE)


def without_suffix(name: str, separators: str = ".") -> str:
    """A name without the ending of a video file; separators: the characters that may stand before it."""
    return _suffix(separators).sub("", name)


def simplified_name(name: str) -> str:
    """Letters and digits without accents; no ending (also as a key has it), no `v_` of ActivityNet's.

    It is what all commands compare when names of videos differ; see train/evaluation/video_names.py.
    """
    decomposed = unicodedata.normalize("NFKD", without_suffix(name, "._"))
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    if not re.fullmatch(r"[\w-]+", letters):
        letters = re.sub(r"[^\w-]+", "_", letters).strip("_")
    return letters.removeprefix(ACTIVITYNET_PREFIX)


def _tails(path: str) -> list[str]:
    """What is left of a path without its first folder, its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[number:]) for number in range(1, len(parts))]


def _letters(path: str) -> str:
    """Letters and digits of a file's name, without case, suffix and folders."""
    name = unicodedata.normalize("NFKC", _spellings(path)[-1].rpartition("/")[2]).casefold()
    return "".join(letter for letter in name if letter.isalnum()) or name
