"""How often each label begins in each hour of each video, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .labelled import LabelledVideo, Report, label_names, lose_scores, remark_durations
from .text_files import seconds_text, table_text

HOUR = 3600.0
HEADER = ("video", "hour", "seconds", "label", "events", "events_per_hour", "labelled_seconds")


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """A row for each video, hour and label, also where there is none.

    hour: 1 is the first; seconds: how much of the hour the video has; events: labels that begin in it;
    events_per_hour: events by the hours that `seconds` are; labelled_seconds: how long the label lasts in it.
    Where the duration is not stated, the video ends with its last label.
    """
    lose_scores(videos, report, "the table of events")
    remark_durations(videos, report, "taken to end with the last label")
    rows: list[list[object]] = [list(HEADER)]
    names = label_names(videos)
    for video in videos:
        ends = [item.end for item in video.labels]
        duration = max(ends, default=0.0) if video.duration is None else video.duration
        last = max([item.start for item in video.labels], default=0.0)
        for hour in range(max(math.ceil(duration / HOUR), int(last // HOUR) + 1)):
            begin, end = hour * HOUR, min((hour + 1) * HOUR, max(duration, hour * HOUR))
            rows += [[video.name, hour + 1, *_row(video, name, begin, end)] for name in names]
    return table_text(rows)


def _row(video: LabelledVideo, name: str, begin: float, end: float) -> list[object]:
    """(seconds, label, events, events per hour, labelled seconds) of a label between two times."""
    labels = [item for item in video.labels if item.label == name]
    events = sum(begin <= max(item.start, 0.0) < begin + HOUR for item in labels)
    spans = sorted((max(item.start, begin), min(item.end, begin + HOUR)) for item in labels)
    covered, until = 0.0, begin
    for start, stop in spans:
        covered += max(stop - max(start, until), 0.0)
        until = max(until, stop)
    share = (end - begin) / HOUR
    per_hour = f"{events / share:.3f}" if share else ""
    return [seconds_text(end - begin), name, events, per_hour, f"{covered:.3f}"]
