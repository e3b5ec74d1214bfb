"""Detects in feature files, as a detector that was trained on features does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.features.dataset import FeatureDataset, is_feature_file
from pipeline.features.records import FeatureVideo, check_made_alike
from pipeline.packing.prepare import SUBSET, find_videos
from train.cli import Output, one_line
from train.detections import VideoDetections

if TYPE_CHECKING:
    from train.inference import TrainedNetwork

EXTRACT = "leantad extract-features makes one of videos"


@dataclass(frozen=True)
class SingleFeatures:
    """One video of a feature file as a source for the Loader."""

    dataset: FeatureDataset
    video: FeatureVideo

    @property
    def classes(self) -> Sequence[str]:
        """Those of its annotated actions, which are nothing to the detector."""
        return sorted({action.label for action in self.video.actions})

    def packed(self, subset: str) -> list[FeatureVideo]:
        """The video, whatever the subset."""
        return [self.video]

    def features(self, key: str, first: int, end: int) -> NDArray[np.float32]:
        """Features `first` to `end` (excluded), (n, D)."""
        return self.dataset.features(key, first, end)


def find_inputs(arguments: Iterable[str]) -> dict[str, Path]:
    """The videos that arguments name, by key: files, folders and globs as find_videos takes them, or feature
    files, each of whose videos has that file. ValueError for both at once, or a key in two feature files."""
    arguments = list(arguments)
    if not any(is_feature_file(argument) for argument in arguments):
        return find_videos(arguments)
    found: dict[str, Path] = {}
    for argument in arguments:
        if not is_feature_file(argument):
            raise ValueError(f"{argument}: got it beside feature files; want one kind at a time")
        for path in find_videos([argument]).values():
            for key in FeatureDataset.open(path).videos:
                if key in found:
                    raise ValueError(f"{path}: video {key} is in {found[key]}, too; give one file at a time")
                found[key] = path
    return found


def check_kind(trained: TrainedNetwork, files: Mapping[str, Path]) -> None:
    """ValueError unless a detector of features gets feature files, and one of videos gets videos."""
    wants_features = trained.settings.data.num_features is not None
    for path in files.values():
        if wants_features and not is_feature_file(path):
            raise ValueError(
                f"{path}: {trained.source} was trained on features; give it a feature file (.h5), {EXTRACT}"
            )
        if is_feature_file(path) and not wants_features:
            raise ValueError(f"{path}: {trained.source} was trained on videos; give it video files")


def predict_features(
    trained: TrainedNetwork, files: Mapping[str, Path], *, output: Output
) -> Iterator[VideoDetections]:
    """Detect in videos of feature files, {key: file}; yields the detections in each, in order.

    A video without usable features has a reason in what is yielded. ValueError where a file's features were
    made otherwise than those of the training.
    """
    width = trained.settings.data.num_features

    @cache
    def opened(path: Path) -> FeatureDataset:
        dataset = FeatureDataset.open(path, num_features=width)
        check_made_alike(dataset.packing, trained.packing or {}, where=path)
        return dataset

    for key, path in output.progress(list(files.items()), "detecting", unit="video"):
        video = opened(path).videos[key]
        found = _detections_in(trained, opened(path), video, path)
        if found.reason is not None and len(files) > 1:
            output.error(f"{path}: {video.name}: {found.reason}")
        yield found


def _detections_in(
    trained: TrainedNetwork, dataset: FeatureDataset, video: FeatureVideo, path: Path
) -> VideoDetections:
    from train.inference import detect_in

    unread = VideoDetections(
        video.key, path, None, (), video.reject, source=video.source, video_file=video.file
    )
    if video.reject is not None:
        return unread
    try:
        results = detect_in(trained, SingleFeatures(dataset, video), subset=SUBSET, batch_size=1)
    except ValueError as error:
        return replace(unread, reason=one_line(error))
    return replace(unread, duration=video.duration, detections=tuple(results[video.key]))
