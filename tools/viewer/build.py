"""Builds the pages of `leantad view` from detections, ground truth and videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.annotations import Video
from pipeline.files import write_text
from pipeline.packing.shard_writer import unique_keys
from pipeline.text import counted, duration_text, first_names
from train.cli import one_line

from .content import PageData, collect, index_row, length_of, order_of, video_data, video_errors
from .media import VideoFinder, embedded, linked
from .pages import index_page, video_page

SHOWN = 3  # names listed of a longer list
MOST_PROBLEMS = 10  # listed on the index
LONGEST_NAME = 100  # characters; a file system takes 255 bytes, a suffix and ".tmp" among them


@dataclass
class View:
    """What was made. order: video numbers as the index lists them; names: {video: its page's file};
    rejected: {video: why it was not read}; problems: a line per video that could not be shown.
    """

    out: Path
    page_data: PageData
    order: list[int]
    names: dict[str, str]
    rejected: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def index(self) -> Path:
        return self.out / "index.html"

    def page_at(self, position: int) -> Path:
        """The page of the video at this position of the order."""
        return self.page_of(self.page_data.matches.keys[self.order[position]])

    def page_of(self, key: str) -> Path:
        return self.out / "videos" / f"{self.names[key]}.html"


def make_view(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    ground_truth: Mapping[str, Video] | None,
    out: Path,
    *,
    title: str,
    finder: VideoFinder,
    durations: Mapping[str, float] | None = None,
    rejected: Mapping[str, str] | None = None,
    embed_limit: float | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> View:
    """Write out/index.html and out/videos/NAME.html for every video of the results.

    embed_limit: put videos of up to so many MiB into the pages; None: link them. A video that cannot be read,
    could not be when detections were made (rejected: the reasons), or is too large to embed gets its page
    without a player and a line in `problems`.
    """
    if not results:
        raise ValueError("detections: no video in them, want at least one entry under results")
    page_data = collect(results, ground_truth, durations)
    view = View(out, page_data, order_of(page_data), file_names(list(results)), rejected or {})
    (out / "videos").mkdir(parents=True, exist_ok=True)
    positions: Iterable[int] = range(len(view.order))
    for position in progress(positions) if progress else positions:
        write_text(view.page_at(position), _video_page(view, position, finder, embed_limit))
    view.remarks = _remarks(page_data, ground_truth, finder, view.rejected)
    listed = view.remarks + view.problems[:MOST_PROBLEMS]
    if len(view.problems) > MOST_PROBLEMS:
        listed.append(f"{len(view.problems) - MOST_PROBLEMS} more videos could not be shown")
    write_text(
        view.index,
        index_page(_index_data(view), title=title, summary=_index_summary(page_data), remarks=listed),
    )
    return view


def _video_page(view: View, position: int, finder: VideoFinder, embed_limit: float | None) -> str:
    """The page at one position of the order; a video that fails is noted in view.problems."""
    video = view.order[position]
    key = view.page_data.matches.keys[video]
    data, media = video_data(view.page_data, video), ""
    data["video"], data["why"], data["unread"] = None, "", view.rejected.get(key)
    try:
        if key in view.rejected:
            raise ValueError(f"{key}: not read: {view.rejected[key]}")
        found = finder.find(key)
        if isinstance(found, str):
            data["why"] = "made without --videos" if finder.empty else found
        elif embed_limit is not None:
            data["video"], media = embedded(found, embed_limit)
        else:
            copy = view.out / "media" / f"{view.names[key]}.mp4"
            data["video"] = linked(found, view.page_of(key), copy)
    except (OSError, ValueError) as error:
        data["why"] = one_line(error)
        view.problems.append(data["why"])
    near = [view.page_at(i).name if 0 <= i < len(view.order) else None for i in (position - 1, position + 1)]
    summary = _video_summary(view.page_data, video, view.rejected.get(key))
    return video_page(data, media, before=near[0], after=near[1], summary=summary)


def file_names(keys: list[str]) -> dict[str, str]:
    """A file's name for each video, without suffix: short, of letters, digits, `_` and `-`."""
    return {
        key: name if len(name) <= LONGEST_NAME else f"{name[:64]}-{sha256(name.encode()).hexdigest()[:12]}"
        for key, name in unique_keys(keys).items()
    }


def _video_summary(page_data: PageData, video: int, reason: str | None) -> list[str]:
    parts = [
        duration_text(length_of(page_data, video)),
        counted(len(page_data.detections_of[video]), "detection"),
    ]
    if reason is not None:
        parts = [f"not read: {reason}"]
    return (
        [*parts, counted(len(page_data.actions_of[video]), "true action")]
        if page_data.has_ground_truth
        else parts
    )


def _index_summary(page_data: PageData) -> list[str]:
    matches = page_data.matches
    parts = [counted(len(matches.keys), "video"), counted(len(matches.detected.scores), "detection")]
    return [*parts, counted(len(matches.true.scores), "true action")] if page_data.has_ground_truth else parts


def _remarks(
    page_data: PageData,
    ground_truth: Mapping[str, Video] | None,
    finder: VideoFinder,
    rejected: Mapping[str, str],
) -> list[str]:
    """What a reader of the index should know beside the list."""
    keys, annotated = set(page_data.matches.keys), ground_truth or {}
    lines = []
    missing = [key for key in annotated if key not in keys]
    if missing:
        what = f"{counted(len(missing), 'video')} of the ground truth"
        lines.append(f"{what} without an entry in the detections, not listed here: {first_names(missing)}")
    unread = rejected.keys() - annotated.keys()
    not_annotated = [
        key
        for key in page_data.matches.keys
        if ground_truth is not None and key not in annotated.keys() | unread
    ]
    if not_annotated:
        lines.append(
            f"Not in the ground truth, shown as if nothing happened in them: {first_names(not_annotated)}"
        )
    labels = {action.label for video in annotated.values() for action in video.actions}
    never_true = [
        name for name in page_data.matches.labels if ground_truth is not None and name not in labels
    ]
    if never_true:
        lines.append(f"Detected classes that have no true action anywhere: {first_names(never_true)}")
    read = [key for key in page_data.matches.keys if key not in rejected]
    not_found = [key for key in read if isinstance(finder.find(key), str)]
    if not_found and not finder.empty:
        pages = counted(len(not_found), "page")
        lines.append(f"{pages} without a video, none of this name was found: {first_names(not_found)}")
    return lines


def _index_data(view: View) -> dict[str, Any]:
    page_data, errors = view.page_data, video_errors(view.page_data)
    rows = []
    for video in view.order:
        key = page_data.matches.keys[video]
        reason = view.rejected.get(key)
        rows.append([f"videos/{view.page_of(key).name}", *index_row(page_data, video, errors), reason])
    return {"hasGroundTruth": page_data.has_ground_truth, "threshold": page_data.threshold, "videos": rows}


def document_of(view: View) -> dict[str, Any]:
    """The result for machines, the videos in the index's order."""
    page_data, errors = view.page_data, video_errors(view.page_data)
    videos: dict[str, dict[str, Any]] = {}
    for video in view.order:
        key = page_data.matches.keys[video]
        videos[key] = {"page": view.page_of(key)}
        if page_data.has_ground_truth:
            parts = {"missed": float(errors.missed[video]), "false": float(errors.false[video])}
            videos[key] |= {"error": float(errors.total[video]), **parts}
    head: dict[str, Any] = {"out": view.out, "index": view.index, "threshold": page_data.threshold}
    return {**head, "videos": videos, "remarks": view.remarks, "problems": view.problems}
