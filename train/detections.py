"""detections.json (ActivityNet's format), read and written; what predict writes beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.files import collection_paused, read_json, write_text
from pipeline.schemas import Lenient, Table, Text, validated
from pipeline.text import on_one_line, short, suggestion
from train.cli import check_new
from train.detection_texts import csv_text, subtitles
from train.trust import is_own, signature_of

JSON_NAME, CSV_NAME = "detections.json", "detections.csv"  # what runs and predictions call them
PROPOSAL = "proposal"  # the label of detections without classes, see post.proposals_only
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # video -> [{"segment", "label", "score"}], best first
LONGEST_SECONDS = 1e9  # what a file states beyond it is no duration of a video
WANTED = 'want {"segment": [start, end], "label": text, "score": number}, all finite; fix or remove it'


class _Detection(TypedDict):
    """The schema of a detection in a file; what else stands there is left out."""

    segment: Annotated[list[Lenient], Field(min_length=2, max_length=2)]
    label: Text
    score: Lenient


_RESULTS = TypeAdapter(dict[Text, list[_Detection]])


def checked_results(results: object, *, where: str) -> dict[str, list[dict[str, Any]]]:
    """Detections of videos checked, numbers as floats; ValueError naming video and entry."""
    try:
        found: Any = _RESULTS.validate_python(results)
    except ValidationError as error:
        location = error.errors(include_url=False)[0]["loc"]
        raise ValueError(_unsound(results, location, where)) from None
    return found  # type: ignore[no-any-return]


def _unsound(results: Any, location: Sequence[int | str], where: str) -> str:
    """What is wrong at a location within the results: the list of a video, or one entry of it."""
    key, number = location[0], location[1] if len(location) > 1 else None
    if not isinstance(number, int):
        return f"{where}results of {short(key)}: got {short(results[key])}, want a list of detections"
    return (
        f"{where}detections of {short(key)}, entry {number}: got {short(results[key][number], 120)}, {WANTED}"
    )


@dataclass(frozen=True)
class DetectionsFile:
    """What a detections.json holds: the detections of each video, and its "external_data" as `metadata`.

    Only files of this project are sure to have the metadata that the properties read; what is not there, or
    is not as we write it, is left out.
    """

    results: Results
    metadata: Mapping[str, Any]

    @property
    def subset(self) -> str | None:
        """The subset that the videos are of."""
        subset = self.metadata.get("subset")
        return subset if isinstance(subset, str) else None

    @property
    def rejected(self) -> dict[str, str]:
        """Why videos could not be read, by key, each reason as one line."""
        return {key: on_one_line(str(reason)) for key, reason in self._table("rejected").items()}

    @property
    def files(self) -> dict[str, str]:
        """The file that each video was read from, as a path."""
        return {key: file for key, file in self._stated("file").items() if isinstance(file, str)}

    @property
    def located_files(self) -> dict[str, str]:
        """`files`, from the folder in which they were named, where the file states it."""
        folder = self.metadata.get("folder")
        base = folder if isinstance(folder, str) else ""
        return {key: os.path.join(base, file) for key, file in self.files.items()}

    @property
    def is_own(self) -> bool:
        """Whether this account wrote the paths of `located_files`, see train/trust.py."""
        return is_own(_paths_text(self.located_files.values()), self.metadata.get("signature"))

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each video."""
        return {
            key: float(seconds)
            for key, seconds in self._stated("duration").items()
            if isinstance(seconds, (int, float)) and 0 < seconds < LONGEST_SECONDS
        }

    @property
    def names(self) -> dict[str, list[str]]:
        """What each detected video is called besides its key: its file, its name in the annotations."""
        stated = (self._stated("file"), self._stated("source"))
        return {
            key: [names[key] for names in stated if isinstance(names.get(key), str)] for key in self.results
        }

    @property
    def titles(self) -> dict[str, str]:
        """What people call a video, its name in the annotations, where that is stated."""
        return {key: name for key, name in self._stated("source").items() if isinstance(name, str) and name}

    def renamed(self, keys: Mapping[str, str]) -> DetectionsFile:
        """The same with other keys of videos, {old: new}; a video that has no new one keeps its own."""
        results = {keys.get(key, key): entries for key, entries in self.results.items()}
        tables = {
            name: {keys.get(key, key): value for key, value in self._table(name).items()}
            for name in ("videos", "rejected")
        }
        return DetectionsFile(results, {**self.metadata, **tables})

    def _table(self, name: str) -> dict[str, Any]:
        table = self.metadata.get(name)
        return table if isinstance(table, dict) else {}

    def _stated(self, field: str) -> dict[str, Any]:
        """One field of the entries of "videos", {video: value}, where an entry has it."""
        entries = self._table("videos").items()
        return {key: entry[field] for key, entry in entries if isinstance(entry, dict) and field in entry}


def read_detections(path: Path) -> DetectionsFile:
    """Read a result file; ValueError naming it where it is no JSON or has no lists of detections.

    path: the file, or the folder of a run or a prediction, which has it.
    """
    if path.is_dir():
        if not (path / JSON_NAME).is_file():
            raise ValueError(f"{path}: no {JSON_NAME} in it, want a result file, or the folder of a run")
        path = path / JSON_NAME
    with collection_paused():
        document = read_json(path)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise ValueError(f'{path}: no "results" object, want {{"results": {{video: [detection, ...]}}}}')
    with collection_paused():
        found = checked_results(results, where=f"{path}: ")
    return DetectionsFile(found, _metadata_of(document.get("external_data"), path))


_METADATA = TypeAdapter(Table)


def _metadata_of(value: object, path: Path) -> dict[str, Any]:
    """The "external_data" of a file; of another project's, which may be anything, none."""
    if not isinstance(value, dict):
        return {}
    return validated(_METADATA, value, where=f"{path}: external_data", advice="fix or remove it")


def write_detections(path: Path, results: Results, *, metadata: Mapping[str, Any]) -> None:
    """Write detections.json in ActivityNet's format, a line per video; metadata: its "external_data"."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(list(entries), allow_nan=False)}" for key, entries in results.items()
    ]
    text = (
        '{"version": "leantad-1", "external_data": '
        + json.dumps(dict(metadata), allow_nan=False)
        + ',\n"results": {\n'
    )
    text += ",\n".join(lines) + "\n}}\n"
    write_text(Path(path), text)


@dataclass(frozen=True)
class VideoDetections:
    """Detections in one video, best first, times in seconds; or the reason why it was not read.

    file: that was read: the video, or a feature file. duration: seconds of the video as the network saw it;
    None if it was not read. source, video_file: its name in the annotations and its own file, as a feature
    file states them; source is None where the video itself was read.
    """

    key: str
    file: Path
    duration: float | None
    detections: Sequence[dict[str, Any]]
    reason: str | None = None
    source: str | None = None
    video_file: str | None = None

    @property
    def stated(self) -> dict[str, str]:
        """What the video is called, as the entries of "videos" have it: "file", "source" or both."""
        if self.source is None:
            return {"file": str(self.file)}
        return {"source": self.source, **({} if self.video_file is None else {"file": self.video_file})}


@dataclass(frozen=True)
class Selection:
    """Which of the detections that evaluation would count are reported.

    classes: None is all. thresholds: the least score of a class, by label, where it is above `min_score`.
    """

    classes: frozenset[str] | None = None
    min_score: float = 0.0
    top: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.min_score, Real) or not self.min_score >= 0:
            raise ValueError(f"min_score: got {self.min_score!r}, want a number of at least 0")
        if self.top is not None and (not isinstance(self.top, Integral) or self.top < 1):
            raise ValueError(f"top: got {self.top!r}, want a whole number of at least 1, or None for all")

    def apply(self, detections: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """The chosen ones of a video's detections, in their order (best first)."""
        chosen = (
            detection
            for detection in detections
            if detection["score"] >= max(self.min_score, self.thresholds.get(detection["label"], 0.0))
            and (self.classes is None or detection["label"] in self.classes)
        )
        return tuple(chosen)[: self.top]


def parse_classes(texts: Sequence[str], known: Sequence[str]) -> frozenset[str] | None:
    """The class names in texts that are each one name, or several as in "a,b"; None, all classes, if none.

    A name may have a comma in it. ValueError, with a suggestion, for one that the network does not know.
    """
    chosen: set[str] = set()
    for text in texts:
        names = [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None or not names:
            hint = suggestion(unknown or "", known)
            if any("," in name for name in known):
                hint += " (one with a comma wants a --classes of its own)"
            raise ValueError(f"--classes: {short(unknown or text)} is no class of this checkpoint; {hint}")
        chosen |= set(names)
    return frozenset(chosen) if texts else None


def check_outputs(out: Path, keys: Sequence[str], *, force: bool) -> None:
    """ValueError if a file that would be written is there already, unless `force`."""
    for path in (out / JSON_NAME, out / CSV_NAME, *(subtitles_path(out, key) for key in keys)):
        check_new(path, force=force)


def subtitles_path(out: Path, key: str) -> Path:
    """The file of a video's subtitles; named as the video's file is, players find them beside it."""
    return out / f"{key}.srt"


def detections_file(found: Sequence[VideoDetections], *, metadata: Mapping[str, Any]) -> DetectionsFile:
    """The detections in files as detections.json holds them.

    Its "external_data" is `metadata`, each video's file or name and duration, and why files were not read;
    those have an empty list of detections, as rejected videos have in an evaluation.
    """
    videos = {video.key: {**video.stated, "duration": video.duration} for video in found}
    rejected = {video.key: video.reason for video in found if video.reason is not None}
    results = {video.key: video.detections for video in found}
    return DetectionsFile(results, {**metadata, "videos": videos, "rejected": rejected})


def write_outputs(out: Path, found: Sequence[VideoDetections], *, metadata: Mapping[str, Any]) -> None:
    """Write detections.csv, subtitles of the files that were read and, last, detections.json.

    Its "external_data" also has a signature of the paths of the files, see train/trust.py; not of those that
    a feature file states, which may be somebody else's.
    """
    for video in found:
        if video.reason is None:
            path = subtitles_path(out, video.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, subtitles(video.detections))
    write_text(out / CSV_NAME, csv_text(found))
    document = detections_file(found, metadata=metadata)
    read = {video.key for video in found if video.source is None}
    paths = [path for key, path in document.located_files.items() if key in read]
    signed = {"signature": signature_of(_paths_text(paths)), **document.metadata}
    write_detections(out / JSON_NAME, document.results, metadata=signed)


def _paths_text(files: Iterable[str]) -> str:
    """What is signed of a result file: the paths in it."""
    return json.dumps(sorted(files))
