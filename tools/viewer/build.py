"""Builds the pages of `leantad view` from detections, ground truth and videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.annotations import Video
from pipeline.files import write_text
from pipeline.packing.shard_writer import unique_keys
from pipeline.text import counted, duration_text, first_names
from train.cli import one_line

from .content import PageData, collect, index_row, length_of, order_of, page_data, video_errors
from .media import Library, embedded, linked
from .pages import index_page, video_page

SHOWN = 3  # names listed of a longer list
MOST_PROBLEMS = 10  # listed on the index
LONGEST_NAME = 100  # characters; a file system takes 255 bytes, a suffix and ".tmp" among them


@dataclass
class View:
    """What was made. order: video numbers as the index lists them; names: {video: its page's file};
    rejected: {video: why it was not read}; problems: a line per video that is not as it was asked for.
    """

    out: Path
    material: PageData
    order: list[int]
    names: dict[str, str]
    rejected: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def index(self) -> Path:
        return self.out / "index.html"

    def page(self, place: int) -> Path:
        """The page of the video at this place of the order."""
        return self.page_of(self.material.judged.keys[self.order[place]])

    def page_of(self, key: str) -> Path:
        return self.out / "videos" / f"{self.names[key]}.html"


def make_view(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    truth: Mapping[str, Video] | None,
    out: Path,
    *,
    title: str,
    library: Library,
    durations: Mapping[str, float] | None = None,
    rejected: Mapping[str, str] | None = None,
    embed_limit: float | None = None,
    progress: Any = None,
) -> View:
    """Write out/index.html and out/videos/NAME.html for every video of the results.

    embed_limit: put videos of up to so many MiB into the pages; None: link them. A video that cannot be read,
    could not be when detections were made (rejected: the reasons), or is too large to embed gets its page
    without a player and a line in `problems`.
    """
    if not results:
        raise ValueError("detections: no video in them, want at least one entry under results")
    material = collect(results, truth, durations)
    view = View(out, material, order_of(material), file_names(list(results)), rejected or {})
    (out / "videos").mkdir(parents=True, exist_ok=True)
    places: Iterable[int] = range(len(view.order))
    for place in progress(places) if progress else places:
        write_text(view.page(place), _video_page(view, place, library, embed_limit))
    view.remarks = _remarks(material, truth, library, view.rejected)
    listed = view.remarks + view.problems[:MOST_PROBLEMS]
    if len(view.problems) > MOST_PROBLEMS:
        listed.append(f"{len(view.problems) - MOST_PROBLEMS} more videos could not be shown")
    write_text(view.index, index_page(_index_data(view), title=title, about=_about(material), remarks=listed))
    return view


def _video_page(view: View, place: int, library: Library, embed_limit: float | None) -> str:
    """The page at one place of the order; a video that fails is noted in view.problems."""
    video = view.order[place]
    key = view.material.judged.keys[video]
    data, media = page_data(view.material, video), ""
    data["video"], data["why"], data["unread"] = None, "", view.rejected.get(key)
    try:
        if key in view.rejected:
            raise ValueError(f"{key}: not read: {view.rejected[key]}")
        clip = library.find(key)
        if isinstance(clip, str):
            data["why"] = "made without --videos" if library.empty else clip
        elif embed_limit is not None:
            data["video"], media = embedded(clip, embed_limit)
        else:
            copy = view.out / "media" / f"{view.names[key]}.mp4"
            data["video"] = linked(clip, view.page_of(key), copy)
    except (OSError, ValueError) as error:
        data["why"] = one_line(error)
        view.problems.append(data["why"])
    near = [view.page(i).name if 0 <= i < len(view.order) else None for i in (place - 1, place + 1)]
    about = _about_video(view.material, video, view.rejected.get(key))
    return video_page(data, media, before=near[0], after=near[1], about=about)


def file_names(keys: list[str]) -> dict[str, str]:
    """A file's name for each video, without suffix: short, of letters, digits, `_` and `-`."""
    return {
        key: name if len(name) <= LONGEST_NAME else f"{name[:64]}-{sha256(name.encode()).hexdigest()[:12]}"
        for key, name in unique_keys(keys).items()
    }


def _about_video(material: PageData, video: int, reason: str | None) -> list[str]:
    facts = [
        duration_text(length_of(material, video)),
        counted(len(material.detections_of[video]), "detection"),
    ]
    if reason is not None:
        facts = [f"not read: {reason}"]
    return [*facts, counted(len(material.truth_of[video]), "true action")] if material.has_truth else facts


def _about(material: PageData) -> list[str]:
    judged = material.judged
    facts = [counted(len(judged.keys), "video"), counted(len(judged.detected.scores), "detection")]
    return [*facts, counted(len(judged.true.scores), "true action")] if material.has_truth else facts


def _remarks(
    material: PageData, truth: Mapping[str, Video] | None, library: Library, rejected: Mapping[str, str]
) -> list[str]:
    """What a reader of the index should know beside the list."""
    keys, known = set(material.judged.keys), truth or {}
    lines = []
    missing = [key for key in known if key not in keys]
    if missing:
        what = f"{counted(len(missing), 'video')} of the ground truth"
        lines.append(f"{what} without an entry in the detections, not listed here: {first_names(missing)}")
    unread = rejected.keys() - known.keys()
    strange = [key for key in material.judged.keys if truth is not None and key not in known.keys() | unread]
    if strange:
        lines.append(f"Not in the ground truth, shown as if nothing happened in them: {first_names(strange)}")
    labels = {action.label for video in known.values() for action in video.actions}
    unknown = [name for name in material.judged.labels if truth is not None and name not in labels]
    if unknown:
        lines.append(f"Detected classes that have no true action anywhere: {first_names(unknown)}")
    read = [key for key in material.judged.keys if key not in rejected]
    lost = [key for key in read if isinstance(library.find(key), str)]
    if lost and not library.empty:
        pages = counted(len(lost), "page")
        lines.append(f"{pages} without a video, none of this name was found: {first_names(lost)}")
    return lines


def _index_data(view: View) -> dict[str, Any]:
    material, errors = view.material, video_errors(view.material)
    rows = []
    for video in view.order:
        key = material.judged.keys[video]
        reason = view.rejected.get(key)
        rows.append([f"videos/{view.page_of(key).name}", *index_row(material, video, errors), reason])
    return {"hasTruth": material.has_truth, "threshold": material.threshold, "videos": rows}


def document_of(view: View) -> dict[str, Any]:
    """The result for machines, the videos in the index's order."""
    material, errors = view.material, video_errors(view.material)
    videos: dict[str, dict[str, Any]] = {}
    for video in view.order:
        key = material.judged.keys[video]
        videos[key] = {"page": view.page_of(key)}
        if material.has_truth:
            parts = {"missed": float(errors.missed[video]), "false": float(errors.false[video])}
            videos[key] |= {"error": float(errors.total[video]), **parts}
    facts = {"out": view.out, "index": view.index, "threshold": material.threshold}
    return {**facts, "videos": videos, "remarks": view.remarks, "problems": view.problems}
