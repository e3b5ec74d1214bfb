"""Tables of frame numbers: video, label, start frame, end frame; the frame rate is --fps or a column.

Frame 0 begins at 0 s, and a frame number stands for the moment at which the frame begins: an action from
frame 25 to 50 of a video of 25 frames a second lasts from 1 s to 2 s. A column `subset` is read, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pipeline.annotations import DEFAULT_SUBSET
from pipeline.text import short, shown

from .labelled import (
    LabelFile,
    LabelledVideo,
    Report,
    TimedLabel,
    by_start,
    frames_of,
    lose_scores,
    rate_of,
    seconds_of,
    timed,
)
from .text_files import Row, header_of, number, rate, rows_of, table_text, without_thousands

VIDEO = ("video", "video id", "video name", "filename", "file name", "file")
LABEL = ("label", "class", "action", "type", "category", "behavior")
START = ("start frame", "startframe", "frame start", "begin frame")
END = ("end frame", "endframe", "frame end", "stop frame", "stopframe")
ANY_START, ANY_END = (*START, "start", "begin"), (*END, "end", "stop")  # --from frames says what they count
WANT = "the columns video, label, start frame and end frame"


def _fits(names: set[str]) -> bool:
    return all(names.intersection(choices) for choices in (VIDEO, LABEL, START, END))


def is_frames(text: str) -> bool:
    """Whether a text is a table with frame numbers."""
    return header_of(text, _fits) is not None


def _fits_loosely(names: set[str]) -> bool:
    return all(names.intersection(choices) for choices in (VIDEO, LABEL, ANY_START, ANY_END))


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The rows by video; one that has only a video says that nothing happens in it."""
    labels: dict[str, list[TimedLabel]] = {}
    rates: dict[str, Fraction] = {}
    subsets: dict[str, str] = {}
    for row in rows_of(file.path, file.text, _fits_loosely, WANT):
        name = row.cell(*VIDEO)
        if not name:
            raise ValueError(f"{row.where}: no video, want its name")
        found = labels.setdefault(name, [])
        subset = row.cell("subset", "split") or DEFAULT_SUBSET
        if subsets.setdefault(name, subset) != subset:
            here, above = short(subset), short(subsets[name])
            raise ValueError(f"{row.where}: {shown(name)} is of subset {here}, further up {above}; want one")
        cells = [row.cell(*choices) for choices in (ANY_START, ANY_END, LABEL)]
        if any(cells):
            fps = file.frame_rate(_stated(row))
            rates[name] = fps
            start, end = (
                seconds_of(_frame(f"{row.where}: {side} frame", cell), fps)
                for side, cell in zip(("start", "end"), cells, strict=False)
            )
            found += timed(report, start, end, cells[2])
    return [
        LabelledVideo(name, by_start(found), fps=rates.get(name), subset=subsets[name])
        for name, found in labels.items()
    ]


def _frame(where: str, text: str) -> float:
    return number(where, without_thousands(where, text))


def _stated(row: Row) -> Fraction | None:
    text = row.cell("fps", "frame rate", "framerate")
    return rate(f"{row.where}: fps", text) if text else None


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The table of all videos, with the frame rate as a column."""
    lose_scores(videos, report, "the table")
    rows: list[list[object]] = [["video", "label", "start_frame", "end_frame", "fps"]]
    for video in videos:
        fps = rate_of(video)
        rows += [[video.name, item.label, *frames_of(item, fps), fps] for item in video.labels]
        if not video.labels:
            rows.append([video.name, "", "", "", fps])
    return table_text(rows)
