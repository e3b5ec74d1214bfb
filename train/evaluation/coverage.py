"""Describes how detections cover a ground truth: what both have, what only one has, what was not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from pipeline.text import first_names
from train.detections import DetectionsFile, Results
from train.evaluation.files import GroundTruth
from train.evaluation.matching import ground_truth_table

MAX_REASONS = 20  # videos listed with the reason why they were not read


def unread_videos(detections: DetectionsFile) -> list[str]:
    """A line for each video that could not be read when detections were made, with the reason."""
    rejected = detections.rejected.items()
    lines = [" ".join(f"{key}: not read: {reason}".split()) for key, reason in rejected]
    rest = len(lines) - MAX_REASONS
    return lines[:MAX_REASONS] + ([f"{rest} more videos were not read"] if rest > 0 else [])


def coverage_lines(ground_truth: GroundTruth, detections: DetectionsFile) -> list[str]:
    """What is compared, and everything that a reader of the mAP should know of it, a line each."""
    labels = Counter(action.label for video in ground_truth.videos.values() for action in video.actions)
    results = detections.results
    total = sum(len(entries) for entries in results.values())
    rejected = detections.rejected.keys() & results.keys()
    lines = [
        f"{len(ground_truth.videos)} videos with {labels.total()} true actions of {len(labels)} classes; "
        f"{total} detections in {len(results) - len(rejected)} videos"
    ]
    if rejected:
        lines[0] += f"; {len(rejected)} more could not be read, nothing is found in them"
    return [*lines, *_video_lines(ground_truth, results, rejected), *_action_lines(ground_truth, results)]


def _video_lines(ground_truth: GroundTruth, results: Results, rejected: Set[str]) -> list[str]:
    """Videos that only one side has."""
    lines = []
    missing = [key for key in ground_truth.videos if key not in results]
    unknown = [key for key in results if key not in ground_truth.videos and key not in rejected]
    if missing:
        lines.append(
            f"{len(missing)} videos have no entry in the detections, count as empty: {first_names(missing)}"
        )
    if unknown:
        elsewhere = sum(key in ground_truth.names for key in unknown)
        count = sum(len(results[key]) for key in unknown)
        lines.append(
            f"{len(unknown)} detected videos are not in the ground truth: {first_names(unknown)}; "
            f"their {count} detections are false positives"
            + (f" ({elsewhere} videos are of another subset)" if elsewhere else "")
        )
    return lines


def _action_lines(ground_truth: GroundTruth, results: Results) -> list[str]:
    """Classes that only the detections have, and actions that cannot count as they stand there."""
    lines = []
    actions = [action for video in ground_truth.videos.values() for action in video.actions]
    labels = {label: number for number, label in enumerate({action.label for action in actions})}
    entries = [entry for of_video in results.values() for entry in of_video]
    num_detections = Counter(entry["label"] for entry in entries)
    extra = [label for label in num_detections if label not in labels]
    backward = sum(float(entry["segment"][1]) <= float(entry["segment"][0]) for entry in entries)
    empty = sum(action.end <= action.start for action in actions)
    distinct = ground_truth_table(ground_truth.videos, labels, drop_duplicates=True)
    repeats = len(actions) - empty - len(distinct.label)
    if extra:
        count = sum(num_detections[label] for label in extra)
        lines.append(
            f"{len(extra)} detected classes have no true action: {first_names(extra)}; "
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


def check_overlap(ground_truth: GroundTruth, detections: Results) -> None:
    """ValueError when detections and ground truth have no video in common: another file or subset."""
    if detections and not any(key in ground_truth.videos for key in detections):
        ours, theirs = next(iter(ground_truth.videos)), next(iter(detections))
        other = any(key in ground_truth.names for key in detections)
        raise ValueError(
            f"detections: none of the {len(detections)} videos ({theirs!r}, ...) is in the ground truth "
            f"({ours!r}, ...), want the same videos; "
            + ("they are of another subset, choose it with --subset" if other else "is it the right file?")
        )
