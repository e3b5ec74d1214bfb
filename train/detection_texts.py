"""Detections as people read them: subtitles, a CSV table, a printed table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.text import columns, on_one_line, shown

if TYPE_CHECKING:
    from .detections import VideoDetections

TABLE_BEST, TABLE_ROWS = 3, 20  # in the table: detections of each of many videos, lines in all


def subtitles(detections: Sequence[Mapping[str, Any]]) -> str:
    """SubRip text: one cue per detection, by start; those that overlap are separate cues."""
    by_start = sorted(detections, key=lambda each: (*each["segment"], -(each["score"] or 0.0)))
    cues = [
        f"{number}\n{cue_times(*detection['segment'])}\n{cue_text(detection)}\n"
        for number, detection in enumerate(by_start, 1)
    ]
    return "\n".join(cues)


def cue_text(detection: Mapping[str, Any]) -> str:
    """What a subtitle shows: "label 0.87", or the label alone where a person made it (score None)."""
    label = on_one_line(detection["label"])  # an empty line would end the cue
    return label if detection["score"] is None else f"{label} {detection['score']:.2f}"


def cue_times(start: float, end: float, point: str = ",") -> str:
    """The times of a subtitle (seconds), which lasts 1 ms at least; point: before the milliseconds."""
    first = max(round(1000 * start), 0)
    return " --> ".join(_clock(each, point) for each in (first, max(round(1000 * end), first + 1)))


def _clock(milliseconds: int, point: str) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def csv_text(found: Sequence[VideoDetections]) -> str:
    """The columns video, start, end, label, score, file; times in seconds, a row per detection.

    file: empty for a video of a feature file that states none.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "start", "end", "label", "score", "file"])
    for video in found:
        file = video.stated.get("file", "")
        for detection in video.detections:
            start, end = detection["segment"]
            table.writerow([video.key, start, end, detection["label"], detection["score"], file])
    return text.getvalue()


def format_detections(found: Sequence[VideoDetections]) -> str:
    """The best detections of each video that was read, as aligned columns."""
    best = TABLE_BEST if len(found) > 1 else TABLE_ROWS // 2
    rows = [("video", "start", "end", "label", "score")]
    for video in found:
        if video.reason is None and not video.detections:
            rows.append((shown(video.key), "-", "-", "nothing found", "-"))
        for detection in video.detections[:best]:
            start, end = (f"{seconds:.2f}" for seconds in detection["segment"])
            score = f"{detection['score']:.3f}"
            rows.append((shown(video.key), start, end, shown(detection["label"]), score))
    first = rows[: TABLE_ROWS + 1]
    total = sum(len(video.detections) for video in found)
    read = sum(video.reason is None for video in found)
    left = f" ({len(rows) - len(first)} lines left out)" if len(rows) > len(first) else ""
    summary = f"{total} detections in {read} of {len(found)} videos; the best {best} of each{left}"
    return f"{columns(first, '<>><>')}\n{summary}"
