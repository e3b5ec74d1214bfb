"""Proposals: detections without classes, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from pipeline.annotations import Video
from pipeline.features.records import FeatureVideo
from pipeline.records import PackedVideo
from train.detections import PROPOSAL, Results

ONE_CLASS = "proposals without classes: all true actions count as one class"

SomeVideo = TypeVar("SomeVideo", Video, PackedVideo, FeatureVideo)


def are_proposals(results: Results) -> bool:
    """Whether all detections, of which there must be some, have the label of proposals."""
    labels = {entry["label"] for entries in results.values() for entry in entries}
    return labels == {PROPOSAL}


def without_classes(videos: Mapping[str, SomeVideo]) -> dict[str, SomeVideo]:
    """The videos with the label of proposals in place of each action's own."""
    return {
        key: replace(video, actions=tuple(replace(action, label=PROPOSAL) for action in video.actions))
        for key, video in videos.items()
    }
