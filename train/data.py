"""Opens the data set of a run, and checks what its dataset.json knows before anything else is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import Video
from pipeline.collate import ground_truth_of
from pipeline.features.dataset import AnyDataset, open_of_settings
from pipeline.features.records import check_made_alike
from pipeline.files import sha256_of
from pipeline.records import AnyVideo
from pipeline.samples import Sample, samples_of_subset
from pipeline.settings import DataSettings
from pipeline.text import counted, first_names
from train.checkpoint import PACKING, check_classes, read_packing
from train.detections import PROPOSAL
from train.evaluation.average_precision import parse_tiou
from train.evaluation.proposals import without_classes
from train.evaluation.sources import packing_differences
from train.settings import Settings


def open_data(settings: Settings) -> AnyDataset:
    """The data set of a run; ValueError if it cannot be trained on, or not be validated on.

    With detector.class_agnostic its actions are all of one class.

    A failure at the first validation would come after hours of work, and again at each --resume.
    """
    data, dataset = settings.data, open_of_settings(settings.data)
    if not dataset.classes:
        raise ValueError(
            f"{data.shards}: no classes, as no video has an action; annotate some, and pack it again"
        )
    if not any(video.actions for video in dataset.packed(data.train_subset)):
        raise ValueError(f"{data.shards}: {_without_actions(dataset, 'train_subset', data.train_subset)}")
    dataset.packed(data.val_subset)
    if not any(video.actions for video in dataset.ground_truth(data.val_subset).values()):
        raise ValueError(f"{data.shards}: {_without_actions(dataset, 'val_subset', data.val_subset)}")
    parse_tiou(settings.run.protocol)
    if settings.detector.class_agnostic:
        _forget_classes(dataset)
    _check_windows(dataset, data)
    return dataset


def _check_windows(dataset: AnyDataset, data: DataSettings) -> None:
    """ValueError if no training window holds an action; it looks no further than the first that does."""
    labels, count = {name: number for number, name in enumerate(dataset.classes)}, 0
    for sample in samples_of_subset(dataset, data.train_subset, data, training=True):
        segments, _ = ground_truth_of(sample, labels, min_overlap=data.min_action_overlap)
        if len(segments):
            return
        count += 1
    names = ("min_action_seconds", "window_seconds", "min_action_overlap")
    got = ", ".join(f"data.{name}={json.dumps(getattr(data, name))}" for name in names)
    raise ValueError(
        f"{data.shards}: none of the {counted(count, 'training window')} holds an action to learn "
        f"from; got {got}; lower the first or the last, or choose longer windows"
    )


def check_same_data(checkpoint: Path, dataset: AnyDataset, data: DataSettings) -> None:
    """ValueError unless classes and packing, if it was kept, are those of a run's checkpoint."""
    check_classes(checkpoint, dataset.classes)
    packing = read_packing(checkpoint) if (checkpoint / PACKING).is_file() else {}
    if data.num_features is not None:
        check_made_alike(dataset.packing, packing, where=data.shards)
    elif packing and (differ := packing_differences(dataset.packing, packing)):
        raise ValueError(
            f"{data.shards}: packed otherwise than what the run was trained on ({differ}); resume with that "
            "data set, or start anew with another --out"
        )


def digest_of_windows(samples: Sequence[Sample]) -> str:
    """Of the videos and their windows, in their order: equal if a run sees the same ones at each step."""
    rows = [[sample.video.key, *sample.window] for sample in samples]
    return sha256_of(json.dumps(rows))


def summary_of_actions(videos: Iterable[AnyVideo | Video]) -> str:
    """ "812 actions, sha256 3f2a...", of all videos in their order: the same unless an annotation changed."""
    rows = [[video.key, [[a.start, a.end, a.label] for a in video.actions]] for video in videos]
    count = sum(len(actions) for _, actions in rows)
    return f"{counted(count, 'action')}, sha256 {sha256_of(json.dumps(rows))[:12]}"


def _forget_classes(dataset: AnyDataset) -> None:
    """Give all actions the label of proposals, the only class that is left."""
    videos: Any = dataset.videos  # of whichever kind the data set has
    dataset.videos = without_classes(videos)
    dataset.classes = (PROPOSAL,)


def _without_actions(dataset: AnyDataset, setting: str, subset: str) -> str:
    """The message for a subset without actions: it names the subsets that have some."""
    counts: dict[str, int] = {}
    for video in dataset.videos.values():
        if video.reject is None:
            counts[video.subset] = counts.get(video.subset, 0) + len(video.actions)
    others = [f"{name} ({counted(count, 'action')})" for name, count in sorted(counts.items()) if count]
    purpose = {"train_subset": "learn from", "val_subset": "validate on"}[setting]
    instead = f", or set data.{setting} to one of: {first_names(others, 10, quoted=False)}" if others else ""
    return f"no video of subset {subset!r} has an action to {purpose}; annotate some{instead}"
