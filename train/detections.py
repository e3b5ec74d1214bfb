"""detections.json (ActivityNet's format), read and written; the CSV and the subtitles that predict adds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_text
from pipeline.text import columns, short, suggestion
from train.cli import check_new

JSON_NAME, CSV_NAME = "detections.json", "detections.csv"  # what runs and predictions call them
Results = dict[str, list[dict[str, Any]]]  # video -> [{"segment", "label", "score"}], best first
BEST, ROWS = 3, 20  # in the table: detections of each of many videos, lines in all


def read_detections(path: Path) -> tuple[Results, dict[str, Any]]:
    """The results {video: [{"segment", "label", "score"}]} and the "external_data" of a result file.

    path: the file, or the folder of a run or a prediction, which has it.
    """
    if path.is_dir():
        if not (path / JSON_NAME).is_file():
            raise ValueError(f"{path}: no {JSON_NAME} in it, want a result file, or the folder of a run")
        path = path / JSON_NAME
    document = read_json(path)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise ValueError(f'{path}: no "results" object, want {{"results": {{video: [detection, ...]}}}}')
    for key, entries in results.items():
        if not isinstance(entries, list):
            raise ValueError(f"{path}: results of {key!r}: got {short(entries)}, want a list of detections")
    meta = document.get("external_data")
    return results, meta if isinstance(meta, dict) else {}


def write_detections(
    path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]], *, meta: Mapping[str, Any]
) -> None:
    """detections.json in ActivityNet's format, a line per video; `meta` goes under "external_data"."""
    lines = [f"{json.dumps(key)}: {json.dumps(entries, allow_nan=False)}" for key, entries in results.items()]
    text = '{"version": "leantad-1", "external_data": ' + json.dumps(dict(meta)) + ',\n"results": {\n'
    text += ",\n".join(lines) + "\n}}\n"
    write_text(Path(path), text)


@dataclass(frozen=True)
class Found:
    """What was found in one file: detections best first, times in seconds; or the reason why it was not read.

    duration: seconds of the video as the network saw it; None if it was not read.
    """

    key: str
    file: Path
    duration: float | None
    detections: tuple[dict[str, Any], ...]
    reason: str | None = None


@dataclass(frozen=True)
class Selection:
    """Which of the detections that evaluation would count are reported. classes None: all."""

    classes: frozenset[str] | None = None
    min_score: float = 0.0
    top: int | None = None

    def of(self, detections: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """The chosen ones of a video's detections, in their order (best first)."""
        chosen = (
            detection
            for detection in detections
            if detection["score"] >= self.min_score
            and (self.classes is None or detection["label"] in self.classes)
        )
        return tuple(chosen)[: self.top]


def classes_asked(text: str | None, known: Sequence[str]) -> frozenset[str] | None:
    """Class names from "a,b"; ValueError with a suggestion for one that the network does not know."""
    if text is None or text in known:  # a name may have a comma in it
        return None if text is None else frozenset([text])
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None or not names:
        hint = suggestion(unknown or "", known)
        raise ValueError(f"--classes: {unknown or text!r} is no class of this checkpoint; {hint}")
    return frozenset(names)


def check_outputs(out: Path, keys: Sequence[str], *, force: bool) -> None:
    """ValueError if a file that would be written is there already, unless `force`."""
    for path in (out / JSON_NAME, out / CSV_NAME, *(subtitles_of(out, key) for key in keys)):
        check_new(path, force=force)


def subtitles_of(out: Path, key: str) -> Path:
    """Where the subtitles of a video go: named as the file is, players find them beside it."""
    return out / f"{key}.srt"


def write_outputs(out: Path, found: Sequence[Found], *, meta: dict[str, Any]) -> None:
    """Write all files; detections.json comes last.

    Under "external_data" it holds `meta`, each video's file and duration, and why files were not read; those
    have an empty list of detections, as rejected videos have in an evaluation, and no subtitles.
    """
    for video in found:
        if video.reason is None:
            path = subtitles_of(out, video.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, subtitles(video.detections))
    write_text(out / CSV_NAME, csv_text(found))
    videos = {video.key: {"file": str(video.file), "duration": video.duration} for video in found}
    rejected = {video.key: video.reason for video in found if video.reason is not None}
    results = {video.key: video.detections for video in found}
    write_detections(out / JSON_NAME, results, meta={**meta, "videos": videos, "rejected": rejected})


def subtitles(detections: Sequence[dict[str, Any]]) -> str:
    """SubRip text: one cue per detection, "label 0.87", by start; those that overlap are separate cues."""
    cues = []
    by_start = sorted(detections, key=lambda detection: (*detection["segment"], -detection["score"]))
    for number, detection in enumerate(by_start, 1):
        start, end = (round(1000 * seconds) for seconds in detection["segment"])
        label = _line(detection["label"])  # an empty line would end the cue
        times = f"{_clock(start)} --> {_clock(max(end, start + 1))}"
        cues.append(f"{number}\n{times}\n{label} {detection['score']:.2f}\n")
    return "\n".join(cues)


def _line(text: str) -> str:
    return " ".join(text.split())


def _clock(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def csv_text(found: Sequence[Found]) -> str:
    """The columns video, start, end, label, score, file; times in seconds, a row per detection."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "start", "end", "label", "score", "file"])
    for video in found:
        for detection in video.detections:
            about = (detection["label"], detection["score"], video.file)
            table.writerow([video.key, *detection["segment"], *about])
    return text.getvalue()


def table_of(found: Sequence[Found]) -> str:
    """The best detections of each video that was read, as aligned columns."""
    best = BEST if len(found) > 1 else ROWS // 2
    rows = [("video", "start", "end", "label", "score")]
    for video in found:
        if video.reason is None and not video.detections:
            rows.append((video.key, "-", "-", "nothing found", "-"))
        for detection in video.detections[:best]:
            start, end = (f"{seconds:.2f}" for seconds in detection["segment"])
            rows.append(
                (_line(video.key), start, end, _line(detection["label"]), f"{detection['score']:.3f}")
            )
    shown = [tuple(map(_line, row)) for row in rows[: ROWS + 1]]
    total = sum(len(video.detections) for video in found)
    read = sum(video.reason is None for video in found)
    left = f" ({len(rows) - len(shown)} lines left out)" if len(rows) > len(shown) else ""
    summary = f"{total} detections in {read} of {len(found)} videos; the best {best} of each{left}"
    return f"{columns(shown, '<>><>')}\n{summary}"
