"""Reads ground truth, and gives detected videos the names of the ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.annotations import Video, read_annotations
from pipeline.text import first_names
from train.detections import DetectionsFile
from train.evaluation.video_names import Names, match_videos

if TYPE_CHECKING:
    from pipeline.features.dataset import AnyDataset
    from pipeline.features.records import FeatureVideo
    from pipeline.records import PackedVideo


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of one subset: its videos by key; names: what videos of all subsets are called."""

    videos: dict[str, Video]
    subset: str
    names: Names


def scores_by_video(
    scores: Mapping[str, Mapping[str, float]], names: Names
) -> dict[str, Mapping[str, float]]:
    """The scores under the keys of the videos, which may be named otherwise in the file; see match_videos."""
    return {key: scores[name] for name, key in match_videos(dict.fromkeys(scores, ()), names).items()}


def check_external_scores(scores: Mapping[str, Mapping[str, float]], videos: list[str]) -> None:
    """ValueError unless there are scores for every video: asked before the model runs, not hours into it."""
    missing = [key for key in videos if not scores.get(key)]
    if missing:
        raise ValueError(
            f"external scores: none for {len(missing)} of {len(videos)} videos: {first_names(missing)}; "
            "want label scores for every video"
        )


def read_ground_truth(location: str | Path, subset: str | None, *, hint: str | None = None) -> GroundTruth:
    """The ground truth of one subset.

    location: annotations (.json, .csv), a dataset.json, a feature file, or whatever Dataset.open takes.
    Without `subset`, the `hint` (what the detections state) if there is such a subset, or the only one;
    ValueError listing them if there are more.
    """
    videos, names = _all_videos(location)
    chosen = choose_subset(_counts(videos), subset, hint, where=location)
    return GroundTruth({k: video for k, video in videos.items() if video.subset == chosen}, chosen, names)


def check_ground_truth(location: str | Path, subset: str | None) -> None:
    """ValueError unless there is such a ground truth: asked before the model runs, not hours into it."""
    videos, _ = _all_videos(location)
    if subset:
        choose_subset(_counts(videos), subset, None, where=location)


def _counts(videos: Mapping[str, Video]) -> Counter[str]:
    return Counter(video.subset for video in videos.values())


def _all_videos(location: str | Path) -> tuple[dict[str, Video], Names]:
    """The videos of all subsets, with their actions, by key; and what else they are called."""
    path = Path(location)
    if path.suffix.lower() in (".json", ".csv") and path.name != "dataset.json":
        videos = read_annotations(path)
        return videos, dict.fromkeys(videos, ())
    from pipeline.features.dataset import open_any

    dataset = open_any(path.parent if path.name == "dataset.json" else location)
    subsets = sorted({video.subset for video in dataset.videos.values()})
    packed = {key: video for subset in subsets for key, video in dataset.ground_truth(subset).items()}
    return packed, video_names_of(dataset)


def ground_truth_of(dataset: AnyDataset, subset: str) -> GroundTruth:
    """The ground truth of a packed data set's subset."""
    return GroundTruth(dataset.ground_truth(subset), subset, video_names_of(dataset))


def video_names_of(dataset: AnyDataset) -> Names:
    """What the videos of a packed data set are called: their names in the annotations, and their files."""
    return {key: [name for name in (v.source, v.file) if name] for key, v in dataset.videos.items()}


def subset_metadata(dataset: AnyDataset, subset: str) -> dict[str, Any]:
    """The "external_data" of detections in a packed subset, with the keys that predict writes too.

    "videos": name in the annotations and seconds of each; "rejected": why videos could not be read.
    """
    all_videos: Mapping[str, PackedVideo | FeatureVideo] = dataset.videos
    videos = {key: video for key, video in sorted(all_videos.items()) if video.subset == subset}
    return {
        "videos": {key: {"source": v.source, "duration": v.duration} for key, v in videos.items()},
        "rejected": {key: v.reject for key, v in videos.items() if v.reject is not None},
    }


def rename_videos(detections: DetectionsFile, ground_truth: GroundTruth) -> tuple[DetectionsFile, str]:
    """The detections with the ground truth's keys of videos, and a line about names that differ.

    The line is empty where none does. ValueError as `match_videos`.
    """
    keys = match_videos(detections.names, ground_truth.names)
    other = [key for key, true in keys.items() if key != true]
    if not other:
        return detections, ""
    line = (
        f"{len(other)} of {len(detections.results)} videos matched by file name, "
        f"such as {other[0]!r} with {keys[other[0]]!r}"
    )
    return detections.renamed(keys), line


def choose_subset(
    num_videos: Mapping[str, int], subset: str | None, hint: str | None, *, where: str | Path
) -> str:
    """The subset to compare with; ValueError listing them where it is unknown, or none is asked for.

    num_videos: {subset: videos}. subset: the one that is asked for; without it, `hint` or the only one.
    """
    listing = ", ".join(f"{name} ({count} videos)" for name, count in sorted(num_videos.items()))
    chosen = subset or (hint if hint in num_videos else None)
    if chosen is None and len(num_videos) == 1:
        chosen = next(iter(num_videos))
    if chosen is None:
        raise ValueError(f"{where}: has the subsets {listing}; choose one with --subset")
    if chosen not in num_videos:
        raise ValueError(f"{where}: no video of subset {chosen!r}, want one of: {listing}")
    return chosen
