"""What videos are called: without the folders of other machines, and so that one name is one video."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.packing.video_folder import VIDEO_SUFFIXES
from pipeline.text import first_names

from .labelled import LabelledVideo, Report, by_start, clean_label


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the file name of a path, without what leads nowhere or out of a folder."""
    parts = (clean_label(part) for part in name.replace("\\", "/").split("/"))
    return tuple(part for part in parts if part not in ("", ".", "..")) or ("video",)


def short_names(names: Iterable[str], report: Report) -> dict[str, str]:
    """The file name of each path; where several paths end in one, with as many folders as it takes."""
    parts = {name: parts_of(name) for name in names}
    short: dict[str, str] = {}
    for name, mine in parts.items():
        others = {theirs for theirs in parts.values() if theirs != mine and theirs[-1] == mine[-1]}
        depth = 1
        while depth < len(mine) and any(theirs[-depth:] == mine[-depth:] for theirs in others):
            depth += 1
        short[name] = "/".join(mine[-depth:])
        if others:
            paths = sorted("/".join(each) for each in (mine, *others))
            report.remark(
                f"{mine[-1]!r} is {len(paths)} videos: {first_names(paths)}; folders tell them apart"
            )
    return short


def merged(videos: Sequence[LabelledVideo], report: Report) -> list[LabelledVideo]:
    """One video for each name, with the labels of all; where they state different durations, the longest."""
    found: dict[str, LabelledVideo] = {}
    for video in videos:
        other = found.get(video.name)
        if other is None:
            found[video.name] = video
            continue
        stated = [each.duration for each in (other, video) if each.duration is not None]
        if stated and max(stated) - min(stated) > 1e-3:
            report.remark(
                f"{video.name}: stated to last {stated[0]:g} and {stated[1]:g} s; the longer counts"
            )
        if video.subset != other.subset:
            raise ValueError(f"{video.name}: is of subsets {other.subset!r} and {video.subset!r}, want one")
        found[video.name] = replace(
            other,
            labels=by_start((*other.labels, *video.labels)),
            duration=max(stated, default=None),
            fps=other.fps or video.fps,
        )
    return list(found.values())


def file_stems(videos: Sequence[LabelledVideo]) -> list[str]:
    """A path for each video's own file, relative and without ending; with it where two would be the same."""
    names = ["/".join(parts_of(video.name)) for video in videos]
    stems = [_without_ending(name) for name in names]
    return [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, names, strict=True)]


def _without_ending(name: str) -> str:
    suffix = next((suffix for suffix in VIDEO_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name
