"""All formats by name, and which of them a file is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import parse_json

from . import (
    annotation_files,
    audacity,
    boris,
    boris_project,
    cvat,
    elan,
    events_per_hour,
    frames,
    label_studio,
    subtitles,
    via,
    youtube,
)
from .labelled import LabelFile, LabelledVideo, Report
from .text_files import read_text

Reader = Callable[[LabelFile, Report], list[LabelledVideo]]
Writer = Callable[[Sequence[LabelledVideo], Report], str]


@dataclass(frozen=True)
class LabelFormat:
    """One format: what people call it, the ending of its files, and its functions; None where it has none.

    per_video: a file holds one video; has_tiers: --tier chooses what is read; has_subsets: it states them.
    """

    title: str
    suffix: str
    read: Reader | None
    write: Writer | None
    per_video: bool = False
    has_tiers: bool = False
    has_subsets: bool = False


CSV, ACTIVITYNET, DETECTIONS = "csv", "activitynet", "detections"
OWN = (CSV, ACTIVITYNET, DETECTIONS)  # what the other commands read and write
FORMATS = {
    CSV: LabelFormat(
        "annotations (CSV)", ".csv", annotation_files.read, annotation_files.write_csv, has_subsets=True
    ),
    ACTIVITYNET: LabelFormat(
        "ActivityNet annotations",
        ".json",
        annotation_files.read,
        annotation_files.write_activitynet,
        has_subsets=True,
    ),
    DETECTIONS: LabelFormat("detections", ".detections.json", annotation_files.read_results, None),
    "boris": LabelFormat("BORIS project", ".boris", boris_project.read, boris_project.write, has_tiers=True),
    "boris-csv": LabelFormat("BORIS events", ".boris.csv", boris.read, boris.write, has_tiers=True),
    "boris-tsv": LabelFormat("BORIS events", ".boris.tsv", boris.read, boris.write_tsv, has_tiers=True),
    "elan": LabelFormat("ELAN", ".eaf", elan.read, elan.write, per_video=True, has_tiers=True),
    "via": LabelFormat("VIA 3 project", ".via.json", via.read_project, via.write_project, has_tiers=True),
    "via-csv": LabelFormat("VIA 3 table", ".via.csv", via.read_table, via.write_table, has_tiers=True),
    "cvat": LabelFormat("CVAT video XML 1.1", ".xml", cvat.read, cvat.write, per_video=True),
    "label-studio": LabelFormat(
        "Label Studio", ".label-studio.json", label_studio.read, label_studio.write, has_tiers=True
    ),
    "audacity": LabelFormat("Audacity labels", ".txt", audacity.read, audacity.write, per_video=True),
    "srt": LabelFormat("SubRip subtitles", ".srt", subtitles.read, subtitles.write_srt, per_video=True),
    "vtt": LabelFormat("WebVTT subtitles", ".vtt", subtitles.read, subtitles.write_vtt, per_video=True),
    "frames": LabelFormat("frame numbers (CSV)", ".frames.csv", frames.read, frames.write),
    "youtube": LabelFormat("YouTube chapters", ".chapters.txt", None, youtube.write, per_video=True),
    "events-per-hour": LabelFormat("events per hour", ".events-per-hour.csv", None, events_per_hour.write),
}
READABLE = [name for name, each in FORMATS.items() if each.read]
WRITABLE = [name for name, each in FORMATS.items() if each.write]
BY_ENDING = {".eaf": "elan", ".srt": "srt", ".vtt": "vtt", ".boris": "boris"}


def recognise(path: Path, text: str) -> str | None:
    """The name of the format that a file is in, by its ending and what is in it; None for an unknown one.

    Raises ValueError where the ending promises JSON and the file is none.
    """
    ending = path.suffix.lower()
    if ending in BY_ENDING:
        return BY_ENDING[ending]
    begin = text.lstrip()[:4000]
    if begin.startswith(("{", "[")):
        return _of_document(parse_json(text, where=path))
    if begin.startswith("<"):
        roots = {"<ANNOTATION_DOCUMENT": "elan", "<annotations": "cvat"}
        return next((name for root, name in roots.items() if root in begin), None)
    if text.startswith("WEBVTT"):
        return "vtt"
    tables: dict[str, Callable[[str], bool]] = {
        "via-csv": via.is_table,
        "boris-csv": boris.is_boris_table,
        "frames": frames.is_frames,
        CSV: annotation_files.is_csv,
        "audacity": audacity.is_audacity,
    }
    found = next((name for name, fits in tables.items() if fits(text)), None)
    if found is None and ending == ".txt" and not begin:
        return "audacity"  # a track without labels
    return found or ("srt" if "-->" in text[:4000] else None)


def _of_document(document: Any) -> str | None:
    documents: dict[str, Callable[[Any], bool]] = {
        ACTIVITYNET: annotation_files.is_activitynet,
        DETECTIONS: annotation_files.is_detections,
        "boris": boris_project.is_project,
        "via": via.is_project,
        "label-studio": label_studio.is_label_studio,
    }
    return next((name for name, fits in documents.items() if fits(document)), None)


def foreign_title(path: Path) -> str | None:
    """What a file is called that convert-annotations reads and make-shards does not; None for all others."""
    try:
        name = recognise(path, read_text(path))
    except (ValueError, OSError):
        return None
    return None if name is None or name in (CSV, ACTIVITYNET) else FORMATS[name].title


def format_of_output(path: Path) -> str | None:
    """The name of the format that a file to be written has by its ending; None for an unknown one."""
    name = path.name.lower()
    fitting = [key for key, each in FORMATS.items() if each.write and name.endswith(each.suffix)]
    return max(fitting, key=lambda key: len(FORMATS[key].suffix), default=None)
