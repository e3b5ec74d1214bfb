"""Reads and writes samples of labelling tools' files; for tests/test_tools_labels_*.py."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from tools.labels.formats import FORMATS
from tools.labels.labelled import LabelFile, LabelledVideo, Report


def read_text_as(name: str, text: str, path: str, *, fps: Fraction | None = None, tiers: list[str] = ()):
    """(videos, report) of a text that a format reads, as if it lay in a file."""
    report = Report()
    return FORMATS[name].read(LabelFile(Path(path), text, fps, frozenset(tiers)), report), report


def written(name: str, *videos: LabelledVideo) -> tuple[str, list[str]]:
    """(text, lines of the report) of videos in a format."""
    report = Report()
    return FORMATS[name].write(videos, report), report.lines("out")


def labels_of(video: LabelledVideo) -> list[tuple[float, float, str]]:
    """(start, end, label) of a video's labels, times to the microsecond."""
    return [(round(item.start, 6), round(item.end, 6), item.label) for item in video.labels]
