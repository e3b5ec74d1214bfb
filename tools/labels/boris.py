"""BORIS's tables of events, CSV or TSV: "tabular events" (a row per START and STOP) and "aggregated events".

The columns are those of versions 7 and 8 (export_observation.py). State events are actions, point events are
moments. Times count from the first of the media files that an observation plays one after another, and begin
at its time offset; both are taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .labelled import (
    COMMENT,
    MODIFIER,
    NO_TIME,
    OVERLAP,
    POINT,
    SUBJECT,
    UNPAIRED,
    LabelFile,
    LabelledVideo,
    Loss,
    Report,
    TimedLabel,
    by_start,
    lose_empty,
    lose_scores,
    remark_durations,
    timed,
)
from .text_files import LARGEST_SECONDS, Row, header_of, number, rows_of, seconds, seconds_text, table_text

NO_SUBJECT = ("", "No focal subject")
MISSING = ("", "NA", "None", "nan", "Not found")
NAMELESS = "observations without a media file are called by their id"
CROSSING = Loss("end of an action", "ends of actions", "cut where the next media file begins")
WANT = "the columns Behavior and Start (s), Stop (s), or Behavior, Time and Behavior type (or Status)"


@dataclass(frozen=True)
class Playlist:
    """The media files that an observation plays one after another, and when its times begin (seconds).

    lengths: seconds of each file; empty where they are not stated.
    """

    names: tuple[str, ...]
    lengths: tuple[float, ...] = ()
    offset: float = 0.0

    def locate(self, start: float, end: float, where: str, report: Report) -> tuple[str, float, float]:
        """(file, start, end) of times of the observation; an end in the next file is cut and counted."""
        start, end = start - self.offset, end - self.offset
        if len(self.names) == 1:
            return self.names[0], start, end
        if len(self.lengths) != len(self.names):
            raise ValueError(
                f"{where}: {len(self.names)} media files in a row, and not how long each is; "
                "convert the .boris project instead"
            )
        for name, length in zip(self.names[:-1], self.lengths, strict=False):
            if start < length:
                if end > length:
                    report.lose(CROSSING)
                return name, start, min(end, length)
            start, end = start - length, end - length
        return self.names[-1], start, end


@dataclass
class Events:
    """Pairs the starts and stops of one file, and keeps the labels of each video."""

    file: LabelFile
    report: Report
    videos: dict[str, list[TimedLabel]] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    subjects: set[str] = field(default_factory=set)
    begun: dict[tuple[str, ...], float] = field(default_factory=dict)

    def wants(self, subject: str) -> bool:
        """Whether events of a subject are to be read; remembers that it is there."""
        self.subjects.add(subject)
        return self.file.wants(subject)

    def add(
        self, playlist: Playlist, where: str, times: tuple[float, float], behavior: str, subject: str
    ) -> None:
        """Keep a state event with its (start, stop), in seconds; where: what messages call it."""
        start, end = times
        if end == start:
            self.report.lose(POINT)
            return
        name, start, end = playlist.locate(start, end, where, self.report)
        found = timed(self.report, start, end, behavior)
        self.videos.setdefault(name, []).extend(found)
        self.report.lose(SUBJECT, len(found) * (subject not in NO_SUBJECT))

    def start(self, key: tuple[str, ...], time: float) -> None:
        """A state begins; one of the same key that has not ended never will."""
        self.report.lose(UNPAIRED, key in self.begun)
        self.begun[key] = time

    def stop(self, key: tuple[str, ...]) -> float | None:
        """When the state began that now ends; None, counted, if none did."""
        self.report.lose(UNPAIRED, key not in self.begun)
        return self.begun.pop(key, None)

    def labelled(self) -> list[LabelledVideo]:
        """The videos; what began and never ended is counted."""
        self.report.lose(UNPAIRED, len(self.begun))
        self.file.check_tiers(self.subjects)
        return [
            LabelledVideo(name, by_start(labels), self.durations.get(name))
            for name, labels in self.videos.items()
        ]


def is_aggregated(names: set[str]) -> bool:
    """Whether columns are those of aggregated events."""
    return {"behavior", "start (s)", "stop (s)"} <= names


def is_tabular(names: set[str]) -> bool:
    """Whether columns are those of tabular events."""
    return {"behavior", "time"} <= names and bool({"behavior type", "status"} & names)


def is_boris_table(text: str) -> bool:
    """Whether a text is one of BORIS's tables."""
    return header_of(text, lambda names: is_aggregated(names) or is_tabular(names)) is not None


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The state events of a table, whichever of the two it is."""
    events = Events(file, report)
    aggregated = header_of(file.text, is_aggregated) is not None
    rows = rows_of(file.path, file.text, is_aggregated if aggregated else is_tabular, WANT)
    for row in rows:
        playlist = playlist_of(row, file.path, report)
        events.durations.update(zip(playlist.names, playlist.lengths, strict=False))
        for name in playlist.names:
            events.videos.setdefault(name, [])
        if events.wants(row.cells.get("subject", "")):
            _count_details(row, report)
            (_add_aggregated if aggregated else _add_tabular)(row, playlist, events)
    return events.labelled()


def _count_details(row: Row, report: Report) -> None:
    modifiers = [text for name, text in row.cells.items() if name.startswith("modifier")]
    comments = [text for name, text in row.cells.items() if name.startswith("comment")]
    report.lose(MODIFIER, any(text not in ("", "None") for text in modifiers))
    report.lose(COMMENT, any(comments))


def _add_aggregated(row: Row, playlist: Playlist, events: Events) -> None:
    start, stop = _stated(row, "start (s)"), _stated(row, "stop (s)")
    if row.cells.get("behavior type", "").upper() == "POINT":
        events.report.lose(POINT)
    elif not start:
        events.report.lose(NO_TIME)
    elif not stop:
        events.report.lose(UNPAIRED)
    else:
        times = seconds(f"{row.where}: Start (s)", start), seconds(f"{row.where}: Stop (s)", stop)
        events.add(playlist, row.where, times, row.cells["behavior"], row.cells.get("subject", ""))


def _add_tabular(row: Row, playlist: Playlist, events: Events) -> None:
    kind, time = _stated(row, "status", "behavior type").upper(), _stated(row, "time")
    details = [text for name, text in row.cells.items() if name.startswith("modifier")]
    subject, behavior = row.cells.get("subject", ""), row.cells["behavior"]
    key = (_stated(row, "observation id") or "|".join(playlist.names), subject, behavior, *details)
    if kind == "POINT":
        events.report.lose(POINT)
    elif kind not in ("START", "STOP"):
        raise ValueError(f"{row.where}: got {kind[:40]!r}, want START, STOP or POINT")
    elif not time:
        events.report.lose(NO_TIME)
    elif kind == "START":
        events.start(key, seconds(f"{row.where}: Time", time))
    else:
        begin = events.stop(key)
        if begin is not None:
            end = seconds(f"{row.where}: Time", time)
            events.add(playlist, row.where, (begin, end), behavior, subject)


def _stated(row: Row, *names: str) -> str:
    """The first of these cells that says something, or an empty text."""
    return row.cell(*names, absent=MISSING)


def playlist_of(row: Row, path: Path, report: Report) -> Playlist:
    """The media files of a row's observation; without any, the observation's own name stands for one.

    BORIS 8 lists them in Source, `player #1:a.mp4;b.mp4|player #2:c.mp4`, and their durations likewise;
    version 7 has Media file path (or Media file) and, for all of them together, Total length.
    """
    source = _stated(row, "source", "media file path", "media file")
    first_player = re.sub(r"^player #1:\s*", "", source.split("|")[0])
    names = tuple(name.strip() for name in first_player.split(";") if name.strip() not in MISSING)
    if not names:
        named = _stated(row, "media file name")
        if not named:
            named = _stated(row, "observation id") or str(path.with_suffix(""))
            report.remark(NAMELESS)
        names = (named,)
    stated = _stated(row, "media duration (s)", "total length").split("|")[0].split(";")
    stated = [text for text in stated if text.strip() not in MISSING]
    where = f"{row.where}: duration"
    lengths = tuple(number(where, text) for text in stated) if len(stated) == len(names) else ()
    offset = number(f"{row.where}: time offset", _stated(row, "time offset (s)") or "0")
    if abs(offset) > LARGEST_SECONDS:
        raise ValueError(f"{row.where}: time offset {offset:g} s is a date; export without it")
    return Playlist(names, lengths, offset)


def joined(labels: Iterable[TimedLabel], report: Report) -> list[TimedLabel]:
    """The labels, those of one name that overlap joined into one: BORIS pairs starts and stops in turn."""
    last: dict[str, int] = {}
    kept: list[TimedLabel] = []
    for item in by_start(labels):
        index = last.get(item.label)
        if index is not None and item.start < kept[index].end:
            kept[index] = TimedLabel(kept[index].start, max(kept[index].end, item.end), item.label)
            report.lose(OVERLAP)
        else:
            last[item.label] = len(kept)
            kept.append(item)
    return kept


HEADER = (
    "Observation id",
    "Observation date",
    "Description",
    "Observation type",
    "Source",
    "Time offset (s)",
    "Coding duration",
    "Media duration (s)",
    "FPS (frame/s)",
    "Subject",
    "Observation duration by subject by observation",
    "Behavior",
    "Behavioral category",
    "Behavior type",
    "Start (s)",
    "Stop (s)",
    "Duration (s)",
    "Media file name",
    "Image index start",
    "Image index stop",
    "Image file path start",
    "Image file path stop",
    "Comment start",
    "Comment stop",
)


def write(videos: Sequence[LabelledVideo], report: Report, separator: str = ",") -> str:
    """The table of aggregated events that version 8 exports; a video without labels has no row in it."""
    lose_scores(videos, report, "BORIS")
    remark_durations(videos, report, "NA stands in the column")
    lose_empty(videos, report, "the table has rows of events")
    rows: list[list[object]] = [list(HEADER)]
    for video in videos:
        length = "NA" if video.duration is None else f"{video.duration:.3f}"
        fps = "NA" if video.fps is None else f"{float(video.fps):.3f}"
        for item in video.labels:
            before = [
                video.name,
                "",
                "",
                "Media file",
                f"player #1:{video.media}",
                "0.0",
                length,
                length,
                fps,
            ]
            what = ["No focal subject", "NA", item.label, "Not defined", "STATE"]
            times = [seconds_text(item.start), seconds_text(item.end), seconds_text(item.end - item.start)]
            rows.append([*before, *what, *times, video.media, "NA", "NA", "NA", "NA", "", ""])
    return table_text(rows, separator)


def write_tsv(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The same, separated by tabs."""
    return write(videos, report, "\t")
