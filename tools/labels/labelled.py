"""What every format is read into and written from, and the record of what a format cannot carry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from pipeline.annotations import DEFAULT_SUBSET
from pipeline.text import counted, first_names, short

MOST_NAMES = 200  # characters of the names of tiers in a message


@dataclass(frozen=True)
class TimedLabel:
    """One labelled stretch of a video: start and end in seconds; score None for one that a person made."""

    start: float
    end: float
    label: str
    score: float | None = None


@dataclass(frozen=True)
class LabelledVideo:
    """One video and its labels, sorted by start.

    name: as the file states it, a path or URL where it does; duration: seconds, None where it is not stated;
    fps: frames per second, where they are known; path: where the file is on this machine, if that is known;
    begin: seconds at which the first frame is shown, as in VideoMetadata, 0 where that is not known.
    """

    name: str
    labels: tuple[TimedLabel, ...]
    duration: float | None = None
    fps: Fraction | None = None
    subset: str = DEFAULT_SUBSET
    path: Path | None = None
    begin: Fraction = Fraction(0)

    @property
    def media(self) -> str:
        """What a tool opens: the absolute path where it is known, else the name."""
        return self.name if self.path is None else str(self.path.absolute())

    @property
    def file_name(self) -> str:
        """The name without folders."""
        return file_name(self.name)


def file_name(name: str) -> str:
    """A path or URL without its folders, of whichever system."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name


class Loss(NamedTuple):
    """A kind of thing that is not carried over: `3 point events not carried: a moment has no duration`."""

    one: str
    several: str
    reason: str


POINT = Loss("point event", "point events", "a moment has no duration")
UNPAIRED = Loss("unpaired event", "unpaired events", "a start without stop, or a stop without start")
REVERSED = Loss("label", "labels", "they end before they start")
UNLABELLED = Loss("segment without label", "segments without label", "no class to learn")
NO_TIME = Loss("label without time", "labels without time", "the file has none for them")
SUBJECT = Loss("subject of a label", "subjects of labels", "an action has a label and times only")
MODIFIER = Loss("modifier or attribute", "modifiers or attributes", "an action has a label and times only")
COMMENT = Loss("comment", "comments", "an action has a label and times only")
REGION = Loss("region of the picture", "regions of the picture", "an action has a label and times only")
OVERLAP = Loss("overlapping label", "overlapping labels", "joined with the one of the same name")
SUBSET = Loss(
    "subset of a video", "subsets of videos", "no field for them; give --subset when reading the file"
)
OTHER_RESULT = Loss("entry of another kind", "entries of other kinds", "they are no stretches of time")


@dataclass
class Report:
    """What was not carried over, counted by kind, and what else a person should know."""

    losses: Counter[Loss] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def lose(self, loss: Loss, number: int = 1) -> None:
        """Count what cannot be carried."""
        if number:
            self.losses[loss] += number

    def remark(self, text: str) -> None:
        """Keep a line, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def remark_sources(self, kind: str, counts: Mapping[str, int]) -> None:
        """Say how many labels each tier, attribute or tag gave, if there were several."""
        if len(counts) > 1:
            names = first_names((f"{name!r} ({count})" for name, count in counts.items()), 10, quoted=False)
            shown, number = short(names, MOST_NAMES, quoted=False), counted(len(counts), kind)
            self.remark(f"labels of {number}: {shown}; --tier reads one alone")

    def lines(self, where: object) -> list[str]:
        """One line for each kind and each remark, with the file that they are of."""
        losses = [
            f"{counted(number, loss.one, loss.several)} not carried: {loss.reason}"
            for loss, number in self.losses.items()
        ]
        return [f"{where}: {line}" for line in (*self.remarks, *losses)]


@dataclass(frozen=True)
class LabelFile:
    """A file to read: its path and text, and what the person states beside it.

    fps: frames per second (--fps); tiers: names of tiers, attributes or subjects to read, none for all.
    """

    path: Path
    text: str
    fps: Fraction | None = None
    tiers: frozenset[str] = frozenset()

    def wants(self, tier: str) -> bool:
        """Whether a tier, attribute or subject is to be read."""
        return not self.tiers or tier in self.tiers

    @property
    def video_name(self) -> str:
        """What its video is called where the file names none: as the file, without its ending."""
        return str(self.path.with_suffix(""))

    def check_tiers(self, known: Iterable[str]) -> None:
        """ValueError for a name of --tier that the file does not have."""
        known = sorted(set(known))
        missing = sorted(self.tiers.difference(known))
        if missing:
            names = short(first_names(known, 10) or "none", MOST_NAMES, quoted=False)
            raise ValueError(f"{self.path}: no tier {short(missing[0])}, want one of: {names}")

    def frame_rate(self, stated: Fraction | None = None) -> Fraction:
        """--fps, or what the file states; ValueError where neither says it."""
        rate = self.fps or stated
        if rate is None:
            raise ValueError(
                f"{self.path}: its times are frame numbers; --fps says how many frames a second has"
            )
        return rate


def clean_label(text: str) -> str:
    """A label as one line of printable characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def timed(
    report: Report, start: float, end: float, label: str, score: float | None = None
) -> tuple[TimedLabel, ...]:
    """The label with its times (seconds), or none where it cannot be an action, which is counted."""
    label = clean_label(label)
    if end < start:
        report.lose(REVERSED)
    elif end == start:
        report.lose(POINT)
    elif not label:
        report.lose(UNLABELLED)
    else:
        return (TimedLabel(start, end, label, score),)
    return ()


def by_start(labels: Iterable[TimedLabel]) -> tuple[TimedLabel, ...]:
    """The labels in the order of their times."""
    return tuple(sorted(labels, key=lambda item: (item.start, item.end, item.label)))


def seconds_of(frame: float, fps: Fraction) -> float:
    """The time of a frame that is counted from 0, in seconds."""
    return float(Fraction(frame) / fps)


def frame_of(seconds: float, fps: Fraction) -> int:
    """The number of the frame nearest to a time; the frames are counted from 0."""
    return math.floor(Fraction(seconds) * fps + Fraction(1, 2))


def frames_of(label: TimedLabel, fps: Fraction) -> tuple[int, int]:
    """The first frame of a label and the first one after it; it has at least one frame."""
    start = frame_of(label.start, fps)
    return start, max(frame_of(label.end, fps), start + 1)


def disjoint(labels: Iterable[TimedLabel]) -> list[list[TimedLabel]]:
    """The labels in rows, none of which has two that overlap; the first row has as many as fit, and so on."""
    rows: list[list[TimedLabel]] = []
    for label in by_start(labels):
        free = next((row for row in rows if row[-1].end <= label.start), None)
        if free is None:
            rows.append([label])
        else:
            free.append(label)
    return rows


def rate_of(video: LabelledVideo) -> Fraction:
    """The frame rate of a video that is written; ValueError where nobody stated it."""
    if video.fps is None:
        raise ValueError(
            f"{video.name}: its frame rate is not known, and frame numbers are wanted; "
            "convert-annotations takes it as --fps"
        )
    return video.fps


def lose_scores(videos: Iterable[LabelledVideo], report: Report, tool: str) -> None:
    """Count the scores that `tool` has no field for."""
    scores = sum(item.score is not None for video in videos for item in video.labels)
    report.lose(Loss("score", "scores", f"{tool} has no field for them"), scores)


def remark_durations(videos: Iterable[LabelledVideo], report: Report, effect: str) -> None:
    """Count the videos without a stated duration; effect: what that means for the file."""
    unknown = sum(video.duration is None for video in videos)
    if unknown:
        report.remark(f"{counted(unknown, 'video')} without a stated duration: {effect}")


def lose_empty(videos: Iterable[LabelledVideo], report: Report, reason: str) -> None:
    """Count the videos without labels, for a file that names videos only beside labels."""
    empty = sum(not video.labels for video in videos)
    report.lose(Loss("video without labels", "videos without labels", reason), empty)


def lose_subsets(videos: Iterable[LabelledVideo], report: Report) -> None:
    """Count the videos of other subsets than the usual one, for a file that states none."""
    report.lose(SUBSET, sum(video.subset != DEFAULT_SUBSET for video in videos))


def label_names(videos: Iterable[LabelledVideo]) -> list[str]:
    """All labels of the videos, each once, sorted."""
    return sorted({item.label for video in videos for item in video.labels})
