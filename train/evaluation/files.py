"""Reads what an evaluation compares: detections, ground truth, external scores; names videos alike."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.annotations import Video, read_annotations
from train.evaluation.video_names import Names, match_videos

if TYPE_CHECKING:
    from pipeline.dataset import Dataset

SHOWN = 3  # names listed of a longer list
JSON_NAME = "detections.json"  # what runs and predictions call their detections

Results = dict[str, list[dict[str, Any]]]  # video -> [{"segment", "label", "score"}]


@dataclass(frozen=True)
class Truth:
    """The ground truth of one subset: its videos by key; names: of the videos of all subsets."""

    videos: dict[str, Video]
    subset: str
    names: Names


class _Repeated(Exception):
    """A key that one JSON object has twice."""


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _Repeated(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return result


def read_json(path: Path) -> Any:
    """The JSON document; ValueError naming file and line if it is none, or if a key stands twice."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise ValueError(f"{place}: not JSON: {error.msg}; is the file whole?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text, want JSON") from None
    except _Repeated as error:
        raise ValueError(f"{path}: {str(error)!r} stands twice in one object, want it once") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply, want detections or scores") from None


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
            raise ValueError(f"{path}: results of {key!r}: got {_short(entries)}, want a list of detections")
    meta = document.get("external_data")
    return results, meta if isinstance(meta, dict) else {}


def read_external_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores of a video-level classifier, as {video: {label: score}}.

    The file holds, bare or under "results", {video: {label: score}}, {video: [{"label", "score"}]}, or
    {video: [score of each class]} with the class names under "class" (the layout of the public ActivityNet
    classifier files).
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: got {_short(document)}, want an object {{video: {{label: score}}}}")
    table = document["results"] if isinstance(document.get("results"), dict) else document
    classes = document.get("class")
    names = classes if isinstance(classes, list) else []
    return {key: _label_scores(entry, names, f"{path}: {key}") for key, entry in table.items()}


def _label_scores(entry: Any, names: list[Any], where: str) -> dict[str, float]:
    try:
        if isinstance(entry, dict):
            scores = {str(label): float(score) for label, score in entry.items()}
        elif entry and isinstance(entry[0], dict):
            scores = {str(item["label"]): float(item["score"]) for item in entry}
        else:
            scores = {str(name): float(score) for name, score in zip(names, entry, strict=True)}
    except (KeyError, TypeError, ValueError):
        scores = {}
    if not scores or not all(math.isfinite(score) and score >= 0 for score in scores.values()):
        want = 'want {label: score} or [{"label", "score"}], finite and not negative'
        raise ValueError(f"{where}: got {_short(entry)}, {want}")
    return scores


def check_external(scores: Mapping[str, Mapping[str, float]], videos: list[str]) -> None:
    """ValueError unless there are scores for every video: asked before the model runs, not hours into it."""
    missing = [key for key in videos if not scores.get(key)]
    if missing:
        raise ValueError(
            f"external scores: none for {len(missing)} of {len(videos)} videos: {some(missing)}; "
            "want label scores for every video"
        )


def read_truth(location: str | Path, subset: str | None, *, hint: str | None = None) -> Truth:
    """The ground truth of one subset.

    location: annotations (.json, .csv), a dataset.json, or whatever Dataset.open takes. Without `subset`, the
    one that `hint` (the detections' own word) names, or the only one; ValueError listing them if there are
    more.
    """
    path = Path(location)
    if path.suffix.lower() in (".json", ".csv") and path.name != "dataset.json":
        videos = read_annotations(path)
        chosen = choose_subset(Counter(video.subset for video in videos.values()), subset, hint, location)
        of_subset = {key: video for key, video in videos.items() if video.subset == chosen}
        return Truth(of_subset, chosen, dict.fromkeys(videos, ()))
    from pipeline.dataset import Dataset

    dataset = Dataset.open(path.parent if path.name == "dataset.json" else location)
    chosen = choose_subset(Counter(video.subset for video in dataset.videos.values()), subset, hint, location)
    return truth_of(dataset, chosen)


def truth_of(dataset: Dataset, subset: str) -> Truth:
    """The ground truth of a packed data set's subset."""
    return Truth(dataset.truth(subset), subset, names_of(dataset))


def names_of(dataset: Dataset) -> Names:
    """What the videos of a packed data set are called: their names in the annotations, and their files."""
    return {key: [name for name in (v.source, v.file) if name] for key, v in dataset.videos.items()}


def facts_of(dataset: Dataset, subset: str) -> dict[str, Any]:
    """What detections in a packed subset say about its videos under "external_data", as predict does:
    "videos", with name and seconds, and "rejected", with the reason.
    """
    videos = {key: video for key, video in sorted(dataset.videos.items()) if video.subset == subset}
    return {
        "videos": {key: {"source": v.source, "duration": v.duration} for key, v in videos.items()},
        "rejected": {key: v.reject for key, v in videos.items() if v.reject is not None},
    }


def names_in(results: Results, meta: Mapping[str, Any]) -> Names:
    """What the detected videos are called: the files and names that "external_data" states, if it does."""
    stated = table_in(meta, "videos")
    facts = {key: stated[key] if isinstance(stated.get(key), dict) else {} for key in results}
    return {
        key: [about[field] for field in ("file", "source") if isinstance(about.get(field), str)]
        for key, about in facts.items()
    }


def table_in(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object of "external_data"; empty where a foreign file has none, or something else."""
    table = meta.get(name)
    return table if isinstance(table, dict) else {}


def renamed(results: Results, meta: dict[str, Any], truth: Truth) -> tuple[Results, dict[str, Any], str]:
    """Results and "external_data" under the names of the ground truth, and a line about names that differ.

    The line is empty where none does. ValueError as `match_videos`.
    """
    pairs = match_videos(names_in(results, meta), truth.names)
    other = [key for key, true in pairs.items() if key != true]
    if not other:
        return results, meta, ""
    tables = {
        name: {pairs.get(key, key): value for key, value in table_in(meta, name).items()}
        for name in ("videos", "rejected")
    }
    line = (
        f"{len(other)} of {len(results)} videos matched by file name, "
        f"such as {other[0]!r} with {pairs[other[0]]!r}"
    )
    return {pairs.get(key, key): entries for key, entries in results.items()}, {**meta, **tables}, line


def choose_subset(known: Mapping[str, int], wanted: str | None, hint: str | None, where: str | Path) -> str:
    """Which subset to compare with; ValueError listing them when it is unknown or unsaid."""
    listing = ", ".join(f"{name} ({count} videos)" for name, count in sorted(known.items()))
    chosen = wanted or (hint if hint in known else None)
    if chosen is None and len(known) == 1:
        chosen = next(iter(known))
    if chosen is None:
        raise ValueError(f"{where}: has the subsets {listing}; choose one with --subset")
    if chosen not in known:
        raise ValueError(f"{where}: no video of subset {chosen!r}, want one of: {listing}")
    return chosen


def some(names: list[str]) -> str:
    """The first of the names, in quotes."""
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
