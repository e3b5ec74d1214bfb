"""Encode video files one by one as the videos of a data set were encoded, without writing shards.

What make-shards would do to a file is done here, by the same function, so that a network sees the same
pixels of it whether the file was packed and evaluated or is only predicted on.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict, TypeAdapter, ValidationError

from ..annotations import Repair, Video
from ..packets_file import PackedFile
from ..records import EncodedFrames, PackedVideo
from ..schemas import Count, Number
from ..temporary_folder import temporary_folder
from ..text import counted, first_names, short
from .journal import Journal
from .pack_video import Job, PackResult, pack_video, reject
from .probe import FrameReader, Unreadable, track_begins
from .rates import exact_rate
from .shard_writer import unique_keys
from .transcode import EncodingSpec, has_encoding
from .video_folder import VIDEO_SUFFIXES, files_under
from .workers import run_jobs

SUBSET = "files"  # videos that no annotation gives a subset
# for weights trained on kept bytes: frames at even times from 0 s on, upright, of one size
RE_ENCODE = "re-encode it: ffmpeg -i IN -vf fps=RATE:start_time=0 -pix_fmt yuv420p OUT.mp4"


@dataclass(frozen=True)
class StatedEncoding:
    """How a dataset.json or packing.json says that videos were encoded; see EncodingSpec."""

    codec: Literal["vp9", "h264"]
    fps: Annotated[Number, Field(ge=0, le=1000)]
    short_side: Annotated[Count, Field(le=1 << 14, multiple_of=2)]
    gop: Annotated[Count, Field(ge=1, le=1 << 20)]
    upscale: Annotated[bool, Strict()]
    side_multiple: Annotated[Count, Field(ge=2, le=256)] = 2  # former versions packed to even sides


_ENCODING = TypeAdapter(StatedEncoding)
# What decides a packed video's pixels, unless it was copied; and what data sets mean that do not state it.
ENCODING_FIELDS = tuple(field.name for field in fields(StatedEncoding))
FORMERLY = {field.name: field.default for field in fields(StatedEncoding) if field.default is not MISSING}


@dataclass(frozen=True)
class SingleVideo:
    """One packed file on disk as a source of videos for the Loader."""

    video: PackedVideo
    file: PackedFile
    classes: tuple[str, ...]

    def packed(self, subset: str) -> list[PackedVideo]:
        """The video, whatever the subset."""
        return [self.video]

    def encoded_frames(self, key: str, frames: NDArray[np.int64]) -> EncodedFrames:
        """The encoded bytes that `frames` need."""
        return self.file.encoded_frames(frames)


def encoding_spec_of(packing: Mapping[str, Any]) -> EncodingSpec | None:
    """How the videos of a data set were encoded ("settings" in dataset.json); None: their bytes were kept.

    Raises ValueError when a value is missing or none that it can be.
    """
    if packing.get("copy") is True:
        return None
    try:
        stated = _ENCODING.validate_python(packing)
    except ValidationError:
        raise ValueError(
            f"got {short(dict(packing), 150)}, want copy, or codec, fps, short_side, gop and upscale; take "
            'them from the "settings" in the dataset.json that the weights were trained on'
        ) from None
    fps = exact_rate(stated.fps) if stated.fps else Fraction(0)
    return EncodingSpec(**{**vars(stated), "fps": fps})


def find_videos(arguments: Iterable[str]) -> dict[str, Path]:
    """The files that arguments name, by names that tell them apart; in order, each once.

    A file's name is its own without the ending. Where another file has the same, it is with the ending, and
    then with as many folders in front as it takes, between slashes. Letters that differ in case alone are no
    difference, where there is another: on many disks `cam.MP4.srt` and `cam.mp4.srt` are one file.
    An argument is a file (of any name), a folder (searched for videos at any depth) or a glob.
    Raises ValueError for one that leads to no file.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        for path in _files_of(argument):
            found.setdefault(Path(os.path.realpath(path)), path)
    choices = {path: _names_of(path) for path in found.values()}
    uses = Counter(name for names in choices.values() for name in set(names))
    folded = Counter(name for names in choices.values() for name in {*map(str.casefold, names)})
    return {
        next((name for name in names if folded[name.casefold()] == 1), None)
        or next((name for name in names if uses[name] == 1), names[-1]): path
        for path, names in choices.items()
    }


def _names_of(path: Path) -> list[str]:
    """Names for a file, the shortest first; the last, its whole path, is no other file's."""
    *folders, name = Path(os.path.abspath(path)).parts[1:]
    depths = range(len(folders), -1, -1)
    return ["/".join((*folders[depth:], last)) for depth in depths for last in (path.stem, name)]


def _files_of(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = _videos_under(path)
    elif glob.has_magic(argument):
        matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        files = [file for match in matches for file in (_videos_under(match) if match.is_dir() else [match])]
    else:
        raise ValueError(f"{argument}: no such file or folder; want videos, folders of them, or globs")
    if not files:
        raise ValueError(f"{argument}: no video in it, want files ending in {', '.join(VIDEO_SUFFIXES)}")
    return files


def _videos_under(folder: Path) -> list[Path]:
    return [path for path in _files_under(folder) if path.suffix.lower() in VIDEO_SUFFIXES]


def _files_under(folder: Path) -> list[Path]:
    """All files that are not hidden, and links to what is not there."""
    paths = (folder / file for file in files_under(folder))
    return sorted(path for path in paths if path.is_file() or not path.exists())


def left_out(arguments: Iterable[str]) -> str:
    """Which files of the folders that arguments name are no videos by their ending; empty if all are."""
    matches = (path for argument in arguments for path in (argument, *glob.glob(argument, recursive=True)))
    folders = {Path(path) for path in matches if os.path.isdir(path)}
    files = {path for folder in folders for path in _files_under(folder)}
    others = [path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES]
    endings = Counter(path.suffix.lower() or "none" for path in sorted(others))
    if not endings:
        return ""
    listed = first_names([f"{ending} {count}" for ending, count in endings.most_common()], 6, quoted=False)
    number = counted(len(others), "file")
    return f"left out: {number} without the ending of a video ({listed}); name one to try it"


def stated_seconds(path: Path) -> float:
    """The length that a file states, in seconds; 0.0 where it states none or cannot be read."""
    try:
        with FrameReader(path).opened() as (container, stream):
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return (container.duration or 0) / av.time_base
    except (Unreadable, OSError):
        return 0.0


def stated_begin(path: Path) -> float:
    """Seconds on a file's own clock at which the first of its tracks begins; 0.0 where it cannot be read."""
    try:
        with FrameReader(path).opened() as (container, stream):
            begins = track_begins([stream, *container.streams.audio])
            return max(0.0, float(min(begins))) if begins else 0.0
    except (Unreadable, OSError):
        return 0.0


class PreparedFiles(Iterator[tuple[PackedVideo, Path]]):
    """Files as they are encoded, in processes of their own, in order; close it, or a process may be left.

    With each comes the path of its encoded bytes, there until the next but one is asked for; a file that
    cannot be used has the reason in `reject`, and nothing lies at the path. In a temporary folder lie
    `workers` files that nobody has taken, and more while one takes longer than those behind it.
    """

    def __init__(self, jobs: Sequence[Job], *, workers: int, on_remark: Callable[[str, Repair], None]):
        """jobs: a file's own name is its `source`."""
        self._jobs, self._taken = jobs, 0
        self._journal: Journal | None = None
        self._videos = self._encode(workers, on_remark)

    def __next__(self) -> tuple[PackedVideo, Path]:
        video = next(self._videos)
        self._taken += 1
        return video

    def is_next_ready(self) -> bool:
        """Whether there is a next file and it would come at once."""
        if self._journal is None or self._taken == len(self._jobs):
            return False
        return self._journal.result(self._jobs[self._taken].key) is not None

    def close(self) -> None:
        """End the processes and remove what they wrote."""
        self._videos.close()

    def _encode(
        self, workers: int, on_remark: Callable[[str, Repair], None]
    ) -> Generator[tuple[PackedVideo, Path], None, None]:
        lying: deque[Path] = deque()
        with temporary_folder() as folder:
            journal = self._journal = Journal(folder)
            with closing(run_jobs(self._jobs, journal, _pack, workers=workers)) as results:
                for job, result in zip(self._jobs, results, strict=True):
                    for remark in result.repairs:
                        on_remark(job.source, remark)
                    lying.append(journal.encoded_path(job.key))
                    if len(lying) > 2:
                        lying.popleft().unlink(missing_ok=True)
                    yield replace(result.video, key=job.source), lying[-1]


def prepare(
    files: Mapping[str, Path],
    spec: EncodingSpec | None,
    *,
    workers: int,
    on_remark: Callable[[str, Repair], None] = lambda key, remark: None,
) -> PreparedFiles:
    """Encode files as `spec` says, `workers` at a time.

    spec: what to re-encode to, None to keep the bytes; a file that is encoded so already is kept, too.
    on_remark gets what is out of the ordinary in a file that can be used (its key, a remark as of packing).
    """
    plain = unique_keys(files)  # names for the files of the journal
    jobs = [
        Job(
            plain[key],
            key,
            Video(plain[key], SUBSET, None, ()),
            Path(),
            str(path),
            None,
            spec,
            way_out=RE_ENCODE,
        )
        for key, path in files.items()
    ]
    return PreparedFiles(jobs, workers=workers, on_remark=on_remark)


def _pack(job: Job) -> tuple[PackResult, bytes]:
    """pack_video; an error of whatever kind is this file's own and does not stop the others."""
    try:
        if job.spec is not None and has_encoding(job.folder / str(job.file), job.spec):
            job = replace(job, spec=None)
        return pack_video(job)
    except OSError as error:
        return reject(job, error.strerror or str(error)), b""
    except Exception as error:
        return reject(job, f"{type(error).__name__}: {error}"), b""
