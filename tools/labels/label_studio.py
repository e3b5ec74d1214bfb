"""Label Studio's JSON and JSON-MIN exports: timelines, tracked regions of videos, and regions of sound.

From its tag documentation and the converters of its SDK: a timeline region has `ranges` of frames, counted
from 1, the last one included; a tracked region has a `sequence` of key frames and is visible from one that is
`enabled` to the next that is not, with that frame; a region of sound has start and end in seconds. The frame
rate is that of the Video tag (frameRate, 24 where it has none), which the export does not hold.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, Field

from pipeline.files import parse_json
from pipeline.text import short

from .labelled import (
    OTHER_RESULT,
    LabelFile,
    LabelledVideo,
    Loss,
    Report,
    TimedLabel,
    by_start,
    frames_of,
    rate_of,
    seconds_of,
    timed,
)
from .models import Number, Text, parsed
from .text_files import rate

UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
MEDIA_KEYS = ("video", "video_url", "url", "audio", "media", "file")
CANCELLED = Loss("skipped annotation", "skipped annotations", "somebody skipped the task")
FURTHER = Loss("further annotation of a task", "further annotations of tasks", "the first one counts")
UNANNOTATED = Loss("task without annotation", "tasks without annotation", "what happens there is not known")
NAMELESS = Loss("task", "tasks", "its data name no video")


class Range(BaseModel):
    """Frames from start to end, counted from 1, both included."""

    start: Number
    end: Number


class KeyFrame(BaseModel):
    """A key frame of a tracked region; time in seconds, where it has one."""

    frame: Number
    enabled: bool | None = True


class Value(BaseModel):
    """What one result says; which fields there are depends on its kind."""

    ranges: list[Range] | None = None
    sequence: list[KeyFrame] | None = None
    start: Number | None = None
    end: Number | None = None
    framesCount: Number | None = None
    duration: Number | None = None
    timelinelabels: list[Text] = Field(default_factory=list)
    labels: list[Text] = Field(default_factory=list)
    videorectangle: list[Text] = Field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The labels of the region."""
        return self.timelinelabels or self.labels or self.videorectangle

    @property
    def fps(self) -> Fraction | None:
        """Frames per second, for a region that states how many frames and seconds the video has."""
        if not self.framesCount or not self.duration or self.framesCount < 0 or self.duration < 0:
            return None
        return Fraction(self.framesCount) / Fraction(self.duration)


class Result(BaseModel):
    """One region: who drew it (the name of its tag), and what it is."""

    from_name: Text = ""
    type: Text = ""
    id: Text = ""
    value: dict[str, Any] = Field(default_factory=dict)  # a relation of two regions has none
    score: Number | None = None


class Annotation(BaseModel):
    """What one person, or a model, made of a task."""

    result: list[Result] = Field(default_factory=list)
    was_cancelled: bool | None = False
    ground_truth: bool | None = False


def _without_ids(entries: Any) -> Any:
    """The annotations that are there in full: an export may name some by their numbers alone."""
    return [each for each in entries if not isinstance(each, int)] if isinstance(entries, list) else entries


Annotations = Annotated[list[Annotation], BeforeValidator(_without_ids)]


class Task(BaseModel):
    """One video and what was made of it."""

    data: dict[str, Any] = Field(default_factory=dict)
    file_upload: Text = ""
    annotations: Annotations = Field(default_factory=list)
    completions: Annotations = Field(default_factory=list)  # the name of version 0
    predictions: Annotations = Field(default_factory=list)


def is_label_studio(document: Any) -> bool:
    """Whether a JSON document is an export: tasks with data and annotations, or JSON-MIN."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        return False
    has_results = bool({"annotations", "completions", "predictions"} & first.keys())
    is_minimal = {"annotation_id", "annotator"} <= first.keys()
    return is_minimal or (has_results and bool({"data", "file_upload"} & first.keys()))


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The regions of every annotated task; of several annotations the ground truth, or the first, counts."""
    videos, used, known = [], Counter[str](), set[str]()
    for where, entry in _tasks(file):
        task = parsed(Task, entry, where)
        name = media_name(task.data) or UPLOADED.sub("", task.file_upload)
        if not name:
            report.lose(NAMELESS)
            continue
        stated = _stated_rate(task.data, where)
        results = _chosen(task, report)
        if results is None:
            report.lose(UNANNOTATED)
            continue
        shared = _labels_by_id(results)
        known.update(result.from_name for result in results)
        labels = [
            label
            for result in results
            if file.wants(result.from_name)
            for label in _labels_of(result, shared, file, stated, report, used)
        ]
        videos.append(LabelledVideo(name, by_start(labels), fps=stated))
    file.check_tiers(known)
    report.remark_sources("tag", used)
    return videos


def _tasks(file: LabelFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, task) of each entry; those of JSON-MIN, one for each annotation, are put together by task."""
    document = parse_json(file.text, where=file.path)
    tasks: dict[object, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(document if isinstance(document, list) else [document]):
        where = f"{file.path}: task {index + 1}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: got {short(entry)}, want an object with data and annotations")
        if "annotation_id" not in entry:
            tasks[index] = where, entry
            continue
        task = _from_minimal(entry)
        number = entry.get("id")  # which two projects may both have
        same = index if number is None else (str(number), media_name(entry))
        _, first = tasks.setdefault(same, (where, task))
        if first is not task:
            first["annotations"] += task["annotations"]
    yield from tasks.values()


def _from_minimal(entry: dict[str, Any]) -> dict[str, Any]:
    """A task of JSON-MIN, where results are values below the name of their tag, as one of JSON."""
    results = [
        {"from_name": name, "value": value}
        for name, values in entry.items()
        for value in (values if isinstance(values, list) else [])
        if isinstance(value, dict)
    ]
    return {"data": entry, "annotations": [{"result": results}]}


def media_name(data: dict[str, Any]) -> str:
    """The path of a task's video, without the prefix of an upload; empty where there is none."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    named = (texts[key] for key in MEDIA_KEYS if texts.get(key))
    like_a_file = (text for text in texts.values() if re.search(r"\.\w{2,4}$", text))
    url = next(named, "") or next(like_a_file, "")
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/match.mp4
    path = local[0] if local else unquote(parts.path) if parts.scheme or url.startswith("/data/") else url
    folder, slash, name = path.rpartition("/")
    return folder + slash + UPLOADED.sub("", name) if "/upload/" in f"/{path}" else path


def _stated_rate(data: dict[str, Any], where: str) -> Fraction | None:
    """The frame rate in a task's data: `<Video frameRate="$fps">` takes it from there."""
    keys = ("fps", "frameRate", "framerate", "frame_rate")
    found = next((data[key] for key in keys if data.get(key)), None)
    return rate(f"{where}: fps", str(found)) if isinstance(found, (str, int, float)) else None


def _chosen(task: Task, report: Report) -> list[Result] | None:
    """The results that count: of people where there are any, else of the first model; None without either."""
    people = task.annotations or task.completions
    kept = [annotation for annotation in people if not annotation.was_cancelled]
    report.lose(CANCELLED, len(people) - len(kept))
    if not people:
        kept = task.predictions
    kept.sort(key=lambda annotation: not annotation.ground_truth)
    report.lose(FURTHER, len(kept[1:]))
    return kept[0].result if kept else None


def _labels_by_id(results: Iterable[Result]) -> dict[str, list[str]]:
    """The labels of regions whose shape and label are two results of one id."""
    found: dict[str, list[str]] = {}
    for result in results:
        labels = result.value.get("labels")
        if result.id and isinstance(labels, list):
            found[result.id] = [str(label) for label in labels]
    return found


def _labels_of(
    result: Result,
    shared: dict[str, list[str]],
    file: LabelFile,
    stated: Fraction | None,
    report: Report,
    used: Counter[str],
) -> Iterable[TimedLabel]:
    """The labels of one result; one of another kind (text, choices, still pictures) is counted."""
    is_text = {"text", "startOffset", "hypertextlabels"} & result.value.keys()
    value = None if is_text else parsed(Value, result.value, f"{file.path}: {result.from_name}")
    if value is None or (value.ranges is None and value.sequence is None and value.start is None):
        report.lose(OTHER_RESULT)
        return
    names = value.names or shared.get(result.id, [])
    if result.type == "labels" and value.sequence is not None and result.id in shared:
        return  # the shape of this id has its own result, with the same frames
    for start, end in _spans(value, file, stated):
        for name in names or [""]:
            used[result.from_name] += 1
            yield from timed(report, start, end, name, result.score)


def _spans(value: Value, file: LabelFile, stated: Fraction | None) -> Iterable[tuple[float, float]]:
    """(start, end) in seconds of a region."""
    if value.ranges is not None:
        fps = file.frame_rate(stated or value.fps)
        for each in value.ranges:  # some scripts count from 0
            yield seconds_of(max(each.start - 1, 0), fps), seconds_of(each.end, fps)
    elif value.sequence is not None:
        fps = file.frame_rate(stated or value.fps)
        for first, last in _visible(value.sequence, value.framesCount):
            yield seconds_of(max(first - 1, 0), fps), seconds_of(last, fps)
    elif value.start is not None and value.end is not None:
        yield value.start, value.end


def _visible(sequence: list[KeyFrame], count: float | None) -> Iterable[tuple[float, float]]:
    """The first and the last frame of each stretch in which a tracked region is visible."""
    begin: float | None = None
    frames = sorted(sequence, key=lambda each: each.frame)
    for key in frames:
        begin = key.frame if begin is None else begin
        if key.enabled is False:
            yield begin, key.frame
            begin = None
    if begin is not None:
        yield begin, max(count or 0, frames[-1].frame)


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """A task for each video, to import: annotations, or predictions where labels have scores."""
    tasks = []
    for video in videos:
        scored = any(item.score is not None for item in video.labels)
        fps = rate_of(video)
        results = [_result(index, item, fps) for index, item in enumerate(video.labels, 1)]
        data = {"video": video.name, "fps": float(fps)}
        entry = {"result": results, **({"model_version": "LeanTAD"} if scored else {})}
        tasks.append({"data": data, "predictions" if scored else "annotations": [entry]})
    return json.dumps(tasks, indent=1) + "\n"


def _result(index: int, item: TimedLabel, fps: Fraction) -> dict[str, Any]:
    start, end = frames_of(item, fps)
    value = {"ranges": [{"start": start + 1, "end": end}], "timelinelabels": [item.label]}
    names = {"id": f"r{index}", "from_name": "label", "to_name": "video", "type": "timelinelabels"}
    score = {} if item.score is None else {"score": item.score}
    return {**names, "value": value, **score}
