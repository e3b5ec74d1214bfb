"""The files of a format for several videos: one for all of them, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files import write_text

from .formats import FORMATS
from .labelled import LabelledVideo, Report, lose_subsets
from .names import file_stems


def file_names(videos: Sequence[LabelledVideo], name: str, *, stem: str) -> list[str]:
    """The files that a format writes into a folder: `stem` with its ending, or one called as each video."""
    made = FORMATS[name]
    stems = file_stems(videos) if made.per_video else [stem]
    return [each + made.suffix for each in stems]


def texts_of(videos: Sequence[LabelledVideo], name: str, report: Report) -> list[str]:
    """What the files of a format hold, in the order of file_names; ValueError if a video lacks something."""
    made = FORMATS[name]
    assert made.write is not None, f"{name} is only read"
    if not made.has_subsets:
        lose_subsets(videos, report)
    groups = [[video] for video in videos] if made.per_video else [list(videos)]
    return [made.write(group, report) for group in groups]


def write_all(files: Sequence[Path], texts: Sequence[str]) -> None:
    """Write each text to its file, whole; folders are made."""
    for path, text in zip(files, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
