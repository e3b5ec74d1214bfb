"""Our own files: annotations as make-shards reads them (CSV, ActivityNet's JSON), and detections.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from pipeline.annotations import CSV_COLUMNS, DEFAULT_SUBSET, Video, read_annotations, read_table
from train.detections import read_detections

from .labelled import (
    LabelFile,
    LabelledVideo,
    Report,
    TimedLabel,
    by_start,
    lose_scores,
    remark_durations,
    timed,
)
from .models import Number, Text, parsed
from .text_files import header_of, seconds, seconds_text, table_text, without_thousands

READ_LATER = "make-shards reads it from the files"


class Detection(BaseModel):
    """One detection of a result file."""

    segment: tuple[Number, Number]
    label: Text
    score: Number


def _fits(names: set[str]) -> bool:
    return set(CSV_COLUMNS) - {"label"} <= names and bool({"label", "type"} & names)


def is_csv(text: str) -> bool:
    """Whether a text is a table that make-shards reads, or one whose separator a spreadsheet chose."""
    return header_of(text, _fits) is not None


def is_activitynet(document: Any) -> bool:
    """Whether a JSON document is in ActivityNet's layout of annotations."""
    return isinstance(document, dict) and isinstance(document.get("database"), dict)


def is_detections(document: Any) -> bool:
    """Whether a JSON document is a result file."""
    return isinstance(document, dict) and isinstance(document.get("results"), dict)


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """Annotations as make-shards reads them, or in a table with other separators and ways to write times."""
    return [
        LabelledVideo(
            video.key,
            by_start(
                label
                for action in video.actions
                for label in timed(report, action.start, action.end, action.label)
            ),
            video.duration,
            subset=video.subset,
        )
        for video in _annotated(file).values()
    ]


def _annotated(file: LabelFile) -> dict[str, Video]:
    header = header_of(file.text, _fits)
    if header is None and file.path.suffix.lower() == ".csv":
        raise ValueError(f"{file.path}: no line with the names of columns; want {','.join(CSV_COLUMNS)}")
    if header is None:
        return read_annotations(file.path)
    separator = header[1]
    read_time = seconds if separator == ";" else _seconds_without_thousands
    return read_table(file.path, file.text, separator=separator, seconds=read_time)


def _seconds_without_thousands(where: str, text: str) -> float:
    """A time of a table without semicolons, which may be from where commas part thousands, not decimals."""
    return seconds(where, without_thousands(where, text))


def read_results(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The detections of a result file, with their scores; a video goes by its file, or name, if stated."""
    found = read_detections(file.path)
    names, durations, subset = found.names, found.durations, found.subset or DEFAULT_SUBSET
    videos = []
    for key, entries in found.results.items():
        where = f"{file.path}: results of {key!r}"
        detections = [parsed(Detection, entry, where) for entry in entries]
        labels: list[TimedLabel] = []
        for each in detections:
            labels += timed(report, *each.segment, each.label, each.score)
        name = next(iter(names[key]), key)
        videos.append(LabelledVideo(name, by_start(labels), durations.get(key), subset=subset))
    return videos


def write_csv(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The table video,start,end,label,subset[,duration]; a video without labels has a row of its own."""
    remark_durations(videos, report, READ_LATER)
    lose_scores(videos, report, "the table of annotations")
    durations = any(video.duration is not None for video in videos)
    rows: list[list[object]] = [[*CSV_COLUMNS, "subset", *["duration"] * durations]]
    for video in videos:
        duration = ["" if video.duration is None else seconds_text(video.duration)] * durations
        for item in video.labels:
            times = seconds_text(item.start), seconds_text(item.end)
            rows.append([video.name, *times, item.label, video.subset, *duration])
        if not video.labels:
            rows.append([video.name, "", "", "", video.subset, *duration])
    return table_text(rows)


def write_activitynet(videos: Sequence[LabelledVideo], report: Report) -> str:
    """ActivityNet's layout."""
    remark_durations(videos, report, READ_LATER)
    lose_scores(videos, report, "ActivityNet's layout of annotations")
    database = {}
    for video in videos:
        annotations = [
            {"segment": [round(item.start, 6), round(item.end, 6)], "label": item.label}
            for item in video.labels
        ]
        duration = {} if video.duration is None else {"duration": video.duration}
        database[video.name] = {"subset": video.subset, **duration, "annotations": annotations}
    return json.dumps({"database": database}, indent=1) + "\n"
