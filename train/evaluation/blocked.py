"""Leaves videos out of an evaluation: those that are offline and that others do not count either.

ActivityNet's evaluation code takes such a list from its server; ETAD, ActionFormer and OpenTAD ship one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.files import read_json
from pipeline.schemas import Text, validated
from train.detections import DetectionsFile
from train.evaluation.files import GroundTruth
from train.evaluation.video_names import match_videos

_BLOCKED = TypeAdapter(list[Text])


def read_blocked(path: Path) -> list[str]:
    """The videos of a JSON list of names; ValueError, one line, if the file holds anything else or none."""
    names = validated(
        _BLOCKED, read_json(path), where=path, advice='want a JSON list of videos, ["name", ...]'
    )
    if not names:
        raise ValueError(f"{path}: names no video; want a JSON list, or leave out --blocked")
    return list(names)


def without_blocked(
    detections: DetectionsFile, ground_truth: GroundTruth, blocked: Sequence[str], *, where: Path
) -> tuple[DetectionsFile, GroundTruth, str]:
    """Both without the blocked videos, which may be spelt otherwise in each, and a line that says how many.

    ValueError if none of them is in the ground truth, or all of it is blocked.
    """
    listed = dict.fromkeys(blocked, ())
    true = set(match_videos(listed, ground_truth.names).values()) & ground_truth.videos.keys()
    if not true:
        raise ValueError(f"{where}: none of its {len(listed)} videos is in the ground truth; is it its list?")
    if len(true) == len(ground_truth.videos):
        raise ValueError(f"{where}: blocks all {len(true)} videos of the ground truth; is it the right list?")
    found = set(match_videos(listed, detections.names).values()) & detections.results.keys()
    results = {key: entries for key, entries in detections.results.items() if key not in found}
    videos = {key: video for key, video in ground_truth.videos.items() if key not in true}
    line = (
        f"{len(true)} of {len(ground_truth.videos)} videos left out, as {where} says, with "
        f"{sum(len(ground_truth.videos[key].actions) for key in true)} true actions"
    )
    return replace(detections, results=results), replace(ground_truth, videos=videos), line
