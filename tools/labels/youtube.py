"""Chapters as YouTube reads them from a description: `minutes:seconds title`, a line each.

Its help page: the first is at 0:00, there are at least three, in order, and each lasts 10 seconds or more.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.text import counted

from .labelled import LabelledVideo, Loss, Report, TimedLabel, lose_scores

SHORTEST_SECONDS, FEWEST = 10, 3
FIRST_TITLE = "Start"
CROWDED = Loss("label", "labels", f"less than {SHORTEST_SECONDS} s from the chapter of a better one")
LATE = Loss("label", "labels", f"in the last {SHORTEST_SECONDS} s of the video")
MOVED = Loss("start of a chapter", "starts of chapters", "moved to 0:00, where the first has to be")


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The chapters of one video: one where an action begins, the best of those that are too near."""
    lose_scores(videos, report, "YouTube")
    (video,) = videos
    chosen: list[TimedLabel] = []
    last = SHORTEST_SECONDS if video.duration is None else video.duration
    for item in sorted(video.labels, key=lambda item: (-(item.score or 0.0), item.start)):
        near = [abs(_begin(item) - _begin(other)) for other in chosen]
        if min(near, default=SHORTEST_SECONDS) < SHORTEST_SECONDS:
            report.lose(CROWDED)
        elif video.duration is not None and item.start > last - SHORTEST_SECONDS:
            report.lose(LATE)
        else:
            chosen.append(item)
    report.lose(MOVED, sum(_begin(item) < int(item.start) for item in chosen))
    chapters = [(_begin(item), item.label) for item in sorted(chosen, key=lambda item: item.start)]
    if not chapters or chapters[0][0] > 0:
        chapters.insert(0, (0, FIRST_TITLE))
    if len(chapters) < FEWEST:
        report.remark(
            f"{video.name}: {counted(len(chapters), 'chapter')}; YouTube shows them from {FEWEST} on"
        )
    return "".join(f"{_clock(start)} {title}\n" for start, title in chapters)


def _begin(item: TimedLabel) -> int:
    """The second of a label's chapter: 0 in the first ten, for one has to begin there."""
    return int(item.start) if item.start >= SHORTEST_SECONDS else 0


def _clock(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
