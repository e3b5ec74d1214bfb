"""Audacity's label tracks: `start TAB end TAB label`, a line each, in seconds.

The manual (Importing and Exporting Labels): a label of a moment has equal start and end; a line that begins
with a backslash holds the frequencies of the label above it. Some systems write decimal commas.
"""

from __future__ import annotations

from collections.abc import Sequence

from .labelled import LabelFile, LabelledVideo, Loss, Report, TimedLabel, by_start, lose_scores, timed
from .text_files import lines_of, number, seconds_text

FREQUENCIES = Loss("range of frequencies", "ranges of frequencies", "they are those of a sound")


def is_audacity(text: str) -> bool:
    """Whether the first line with something in it is a label."""
    first = next((line for line in lines_of(text) if line.strip()), "")
    try:
        start, end, *_ = first.split("\t")
        number("", start)
        number("", end)
    except ValueError:
        return False
    return True


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The labels; the video is called as the file is, for the file names none."""
    labels: list[TimedLabel] = []
    for line_number, line in enumerate(lines_of(file.text), 1):
        where = f"{file.path}, line {line_number}"
        if line.startswith("\\"):
            report.lose(FREQUENCIES)
        elif line.strip():
            start, _, rest = line.partition("\t")
            end, _, label = rest.partition("\t")
            labels += timed(report, number(where, start), number(where, end), label)
    return [LabelledVideo(file.video_name, by_start(labels))]


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The label track of one video."""
    lose_scores(videos, report, "Audacity")
    return "".join(
        f"{seconds_text(item.start)}\t{seconds_text(item.end)}\t{item.label}\n"
        for video in videos
        for item in video.labels
    )
