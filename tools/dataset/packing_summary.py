"""What make-shards prints in the end: counts, a table of classes and subsets, rejects, repairs, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.packing.pack_dataset import PackingPlan
from pipeline.packing.pack_video import PackResult
from pipeline.packing.video_folder import is_named
from pipeline.records import PackedVideo
from pipeline.text import columns, first_names, shown
from tools.dataset.names import name_warnings
from tools.dataset.problems import first_lines, kinds_text, repair_lines
from tools.dataset.statistics import actions_per_class

MAX_LINES = 20  # of a list on the screen; the files and --json have all of them
MAX_FILES = 5  # named in a line
MANY_OUTSIDE = 0.1  # share of the actions; annotations of public data sets have a few such


def summary_of(plan: PackingPlan, results: Sequence[PackResult], state: str) -> dict[str, Any]:
    """The answer as JSON values; `state` is the key that counts the good videos, "packed" or "usable"."""
    videos = [result.video for result in results]
    good = [video for video in videos if video.reject is None]
    per_class = actions_per_class(plan.classes, good)
    return {
        "videos": len(videos),
        state: len(good),
        "minutes": round(sum(video.duration or 0.0 for video in good) / 60, 3),
        "frames": sum(video.num_frames for video in good),
        "actions": sum(len(video.actions) for video in good),
        "subsets": dict(sorted(Counter(video.subset for video in good).items())),
        "per_class": per_class,
        "rejected": {video.source: video.reject for video in videos if video.reject is not None},
        "repairs": [asdict(repair) for result in results for repair in result.repairs],
        "unnamed": plan.unnamed,
        "similar": {v.source: v.file for v in videos if v.file and not is_named(v.source, v.file)},
        "warnings": [
            *name_warnings({video.subset for video in videos}, per_class),
            *_without_actions(good),
            *_outside(results),
        ],
    }


def _without_actions(videos: Sequence[PackedVideo]) -> list[str]:
    """Warnings of subsets without an action."""
    subsets = dict.fromkeys(sorted(video.subset for video in videos))
    with_actions = {video.subset for video in videos if video.actions}
    return [
        f"subset {shown(name)!r} has no action: a run can neither train nor validate on it"
        for name in subsets
        if name not in with_actions
    ]


def _outside(results: Sequence[PackResult]) -> list[str]:
    """A warning where so many actions lie outside of the videos that their times may be none of these."""
    lost = sum(repair.kind == "outside" for result in results for repair in result.repairs)
    annotated = lost + sum(len(result.video.actions) for result in results if result.video.reject is None)
    if lost <= MANY_OUTSIDE * annotated:
        return []
    return [
        f"{lost} of {annotated} actions lie outside of their videos and are left out; are the times seconds "
        "of these files? A spreadsheet may have made 1:23:00, hours, of 1:23; of frame numbers "
        "leantad convert-annotations --from frames --fps RATE makes seconds"
    ]


def text_of(summary: Mapping[str, Any], state: str) -> str:
    """The summary for people."""
    rejected, repairs, unnamed = (summary[name] for name in ("rejected", "repairs", "unnamed"))
    lines = [
        f"{state}: {summary[state]} of {summary['videos']} videos: {summary['minutes']:.1f} min, "
        f"{summary['frames']} frames, {summary['actions']} actions",
        class_table(summary["per_class"], summary["subsets"]),
        f"rejected: {len(rejected)}",
        *first_lines((f"{name}: {reason}" for name, reason in rejected.items()), MAX_LINES),
        f"repairs and remarks{kinds_text(repairs)}: {len(repairs)}",
        *repair_lines(repairs, MAX_LINES),
    ]
    if summary["similar"]:
        pairs = [f"{name} is {file}" for name, file in summary["similar"].items()]
        lines.append(
            f"videos found by a similar file name: {len(pairs)} ({first_names(pairs, quoted=False)})"
        )
    if unnamed:
        names = first_names(unnamed, MAX_FILES, quoted=False)
        lines.append(f"video files that no annotation names, left out: {len(unnamed)} ({names})")
    return "\n".join([*lines, *(f"warning: {text}" for text in summary["warnings"])])


def class_table(per_class: Mapping[str, Mapping[str, int]], subsets: Mapping[str, int]) -> str:
    """A line for each class with its actions in every subset, the rarest class first: typos are rare.

    subsets: number of videos in each, for the last line.
    """
    by_class = sorted(per_class.items(), key=lambda row: (sum(row[1].values()), row[0]))
    rows: list[list[object]] = [["actions of class", *map(shown, subsets)]]
    rows += [
        [shown(label), *(counts.get(name, 0) for name in subsets)] for label, counts in by_class[:MAX_LINES]
    ]
    lines = columns([*rows, ["videos", *subsets.values()]], indent="  ").splitlines()
    if len(by_class) > MAX_LINES:
        lines.insert(-1, f"  ... and {len(by_class) - MAX_LINES} more classes, not as rare")
    return "\n".join(lines)
