"""Builds the pages of `leantad view` from detections, ground truth and videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.annotations import Video
from pipeline.files import sha256_of, write_text
from pipeline.packing.shard_writer import unique_keys
from train.cli import one_line

from .content import PageData, collect, index_row, order_of, video_data, video_errors
from .media import VideoFinder, embedded, linked
from .pages import index_page, video_page
from .summaries import index_summary, remarks_on, video_summary

MAX_PROBLEMS = 10  # listed on the index
LONGEST_NAME = 100  # characters; a file system takes 255 bytes, a suffix and ".tmp" among them


@dataclass
class View:
    """The pages that were made, and what they show.

    order: video numbers as the index lists them; names: {video: its page's file, without suffix}; titles:
    {video: what people call it}, if not by its key; rejected: {video: why it was not read}; problems: a line
    per video that could not be shown; remarks: what a reader of the index should know besides.
    """

    out: Path
    page_data: PageData
    order: list[int]
    names: dict[str, str]
    titles: Mapping[str, str]
    rejected: Mapping[str, str]
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def index(self) -> Path:
        """The page that lists all videos."""
        return self.out / "index.html"

    def page_at(self, position: int) -> Path:
        """The page of the video at this position of the order."""
        return self.page_of(self.page_data.matches.keys[self.order[position]])

    def page_of(self, key: str) -> Path:
        """The page of the video of this name."""
        return self.out / "videos" / f"{self.names[key]}.html"


def make_view(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    ground_truth: Mapping[str, Video] | None,
    out: Path,
    *,
    title: str,
    finder: VideoFinder,
    durations: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
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
    view = View(out, page_data, order_of(page_data), file_names(list(results)), titles or {}, rejected or {})
    (out / "videos").mkdir(parents=True, exist_ok=True)
    positions: Iterable[int] = range(len(view.order))
    for position in progress(positions) if progress else positions:
        write_text(view.page_at(position), _video_page(view, position, finder, embed_limit))
    view.remarks = remarks_on(page_data, ground_truth, finder, view.rejected)
    write_text(view.index, _index_page(view, title))
    return view


def _index_page(view: View, title: str) -> str:
    listed = view.remarks + view.problems[:MAX_PROBLEMS]
    if len(view.problems) > MAX_PROBLEMS:
        listed.append(f"{len(view.problems) - MAX_PROBLEMS} more videos could not be shown")
    return index_page(_index_data(view), title=title, summary=index_summary(view.page_data), remarks=listed)


def _video_page(view: View, position: int, finder: VideoFinder, embed_limit: float | None) -> str:
    """The page at one position of the order; a video that fails is noted in view.problems."""
    video = view.order[position]
    key = view.page_data.matches.keys[video]
    data, media = video_data(view.page_data, video), ""
    data["name"] = view.titles.get(key, key)
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
    summary = video_summary(view.page_data, video, view.rejected.get(key))
    return video_page(data, media, before=near[0], after=near[1], summary=summary)


def file_names(keys: list[str]) -> dict[str, str]:
    """A file's name for each video, without suffix: short, of letters, digits, `_` and `-`.

    They stay apart on a disk that ignores case, too.
    """
    names = unique_keys(keys)
    count = Counter(name.lower() for name in names.values())
    unfit = {name for name in names.values() if len(name) > LONGEST_NAME or count[name.lower()] > 1}
    return {
        key: f"{name[:64]}-{sha256_of(name)[:12]}" if name in unfit else name for key, name in names.items()
    }


def _index_data(view: View) -> dict[str, Any]:
    """What the script of the index reads."""
    page_data, errors = view.page_data, video_errors(view.page_data)
    rows = []
    for video in view.order:
        key = page_data.matches.keys[video]
        reason = view.rejected.get(key)
        figures = index_row(page_data, video, errors)[1:]
        rows.append([f"videos/{view.page_of(key).name}", view.titles.get(key, key), *figures, reason])
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
