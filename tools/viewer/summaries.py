"""Sentences on the viewer's pages: what a video holds, and which names did not match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.annotations import Video
from pipeline.text import counted, duration_text, first_names

from .content import PageData, length_of
from .media import NOT_FOUND, VideoFinder


def video_summary(page_data: PageData, video: int, reason: str | None) -> list[str]:
    """Length, number of detections and true actions of a video; reason: why it was not read, if so."""
    detections = counted(len(page_data.detections_of[video]), "detection")
    parts = [duration_text(length_of(page_data, video)), detections]
    if reason is not None:
        parts = [f"not read: {reason}"]
    if page_data.has_ground_truth:
        parts.append(counted(len(page_data.actions_of[video]), "true action"))
    return parts


def index_summary(page_data: PageData) -> list[str]:
    """Number of videos, detections and true actions."""
    matches = page_data.matches
    parts = [counted(len(matches.keys), "video"), counted(len(matches.detected.scores), "detection")]
    if page_data.has_ground_truth:
        parts.append(counted(len(matches.true.scores), "true action"))
    return parts


def remarks_on(
    page_data: PageData,
    ground_truth: Mapping[str, Video] | None,
    finder: VideoFinder,
    rejected: Mapping[str, str],
) -> list[str]:
    """What a reader of the index should know: names that only one of the sources has.

    rejected: {video: why it was not read}.
    """
    lines = [] if ground_truth is None else list(_ground_truth_remarks(page_data, ground_truth, rejected))
    keys = page_data.matches.keys
    found = {} if finder.empty else {key: finder.find(key) for key in keys if key not in rejected}
    missing = {key: reason for key, reason in found.items() if isinstance(reason, str)}
    not_found = [key for key, reason in missing.items() if reason == NOT_FOUND]
    unclear = [key for key, reason in missing.items() if reason != NOT_FOUND]
    if not_found:
        pages = counted(len(not_found), "page")
        lines.append(f"{pages} without a video, none of this name was found: {first_names(not_found)}")
    if unclear:
        pages = counted(len(unclear), "page")
        lines.append(f"{pages} without a video, such as {first_names(unclear[:1])}: {missing[unclear[0]]}")
    return lines


def _ground_truth_remarks(
    page_data: PageData, ground_truth: Mapping[str, Video], rejected: Mapping[str, str]
) -> Iterator[str]:
    keys = dict.fromkeys(page_data.matches.keys)
    missing = [key for key in ground_truth if key not in keys]
    if missing:
        videos = f"{counted(len(missing), 'video')} of the ground truth"
        yield f"{videos} without an entry in the detections, not listed here: {first_names(missing)}"
    not_annotated = [key for key in keys if key not in ground_truth and key not in rejected]
    if not_annotated:
        names = first_names(not_annotated)
        yield f"Not in the ground truth, shown as if nothing happened in them: {names}"
    labels = {action.label for video in ground_truth.values() for action in video.actions}
    never_true = [name for name in page_data.matches.labels if name not in labels]
    if never_true:
        yield f"Detected classes that have no true action anywhere: {first_names(never_true)}"
