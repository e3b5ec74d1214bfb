"""Reads what an evaluation compares (detections, ground truth, external scores) and says how they fit."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.annotations import Video, read_annotations
from train.matching import truth_rows

SHOWN = 3  # names listed of a longer list


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


def read_detections(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The results {video: [{"segment", "label", "score"}]} and the "external_data" of a result file."""
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
    names = document.get("class") if isinstance(document.get("class"), list) else []
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
            f"external scores: none for {len(missing)} of {len(videos)} videos: {_some(missing)}; "
            "want label scores for every video"
        )


def read_truth(
    location: str | Path, subset: str | None, *, hint: str | None = None
) -> tuple[dict[str, Video], str]:
    """The ground truth of one subset: (videos by key, the subset's name).

    location: annotations (.json, .csv), a dataset.json, or whatever Dataset.open takes. Without `subset`, the
    one that `hint` (the detections' own word) names, or the only one; ValueError listing them if there are
    more.
    """
    path = Path(location)
    if path.suffix.lower() in (".json", ".csv") and path.name != "dataset.json":
        videos = read_annotations(path)
        chosen = choose_subset(Counter(video.subset for video in videos.values()), subset, hint, location)
        return {key: video for key, video in videos.items() if video.subset == chosen}, chosen
    from pipeline.shards import Dataset

    dataset = Dataset.open(path.parent if path.name == "dataset.json" else location)
    chosen = choose_subset(Counter(video.subset for video in dataset.videos.values()), subset, hint, location)
    return dataset.truth(chosen), chosen


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


def coverage_lines(truth: Mapping[str, Video], detections: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """What is compared, and everything about it that a reader of the mAP should know, a line each."""
    labels = Counter(action.label for video in truth.values() for action in video.actions)
    total = sum(len(entries) for entries in detections.values())
    missing = [key for key in truth if key not in detections]
    strange = [key for key in detections if key not in truth]
    named = Counter(entry["label"] for entries in detections.values() for entry in entries)
    unknown = [label for label in named if label not in labels]
    backward = sum(
        float(entry["segment"][1]) <= float(entry["segment"][0])
        for entries in detections.values()
        for entry in entries
    )
    empty = sum(action.end <= action.start for video in truth.values() for action in video.actions)
    index = {label: number for number, label in enumerate(labels)}
    repeats = labels.total() - empty - len(truth_rows(truth, index, drop_duplicates=True).label)
    lines = [
        f"{len(truth)} videos with {labels.total()} true actions of {len(labels)} classes; "
        f"{total} detections in {len(detections)} videos"
    ]
    if missing:
        lines.append(
            f"{len(missing)} videos have no entry in the detections and count as empty: {_some(missing)}"
        )
    if strange:
        count = sum(len(detections[key]) for key in strange)
        lines.append(
            f"{len(strange)} detected videos are not in the ground truth: {_some(strange)}; "
            f"their {count} detections are false positives"
        )
    if unknown:
        count = sum(named[label] for label in unknown)
        lines.append(
            f"{len(unknown)} detected classes have no true action: {_some(unknown)}; "
            f"their {count} detections count nowhere"
        )
    if backward:
        lines.append(f"{backward} detections end before they last any time: false positives")
    if empty:
        lines.append(
            f"{empty} true actions have no length and cannot be found (--drop-duplicates leaves them out)"
        )
    if repeats:
        lines.append(f"{repeats} true actions repeat another one (--drop-duplicates leaves them out)")
    return lines


def check_overlap(truth: Mapping[str, Video], detections: Mapping[str, Any]) -> None:
    """ValueError when detections and ground truth have no video in common: another file, or other names."""
    if detections and not any(key in truth for key in detections):
        ours, theirs = next(iter(truth)), next(iter(detections))
        raise ValueError(
            f"detections: none of the {len(detections)} videos ({theirs!r}, ...) is in the ground truth "
            f"({ours!r}, ...), want the same names; is it another subset, or a 'v_' in front?"
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
