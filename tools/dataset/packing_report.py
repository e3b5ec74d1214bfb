"""What make-shards says in the end: counts, a table of classes and subsets, rejects, repairs, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.packing.pack_dataset import PackingPlan
from pipeline.packing.pack_video import PackResult
from pipeline.text import first_names
from tools.dataset.facts import actions_per_class
from tools.dataset.names import name_warnings

SHOWN = 20  # lines of a list on the screen; the files and --json have all of them
NAMED = 5  # files named in a line


def summary_of(plan: PackingPlan, outcomes: Sequence[PackResult], state: str) -> dict[str, Any]:
    """The answer as JSON values; `state` is the key that counts the good videos, "packed" or "usable"."""
    videos = [outcome.video for outcome in outcomes]
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
        "repairs": [asdict(repair) for outcome in outcomes for repair in outcome.repairs],
        "unnamed": plan.unnamed,
        "warnings": name_warnings({video.subset for video in videos}, per_class),
    }


def text_of(document: Mapping[str, Any], state: str) -> str:
    """The answer for people."""
    rejected, repairs, unnamed = (document[name] for name in ("rejected", "repairs", "unnamed"))
    kinds = Counter(repair["kind"] for repair in repairs)
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    lines = [
        f"{state}: {document[state]} of {document['videos']} videos: {document['minutes']:.1f} min, "
        f"{document['frames']} frames, {document['actions']} actions",
        *class_table(document["per_class"], document["subsets"]),
        f"rejected: {len(rejected)}",
        *_first(f"{name}: {reason}" for name, reason in rejected.items()),
        f"repairs and remarks{f' ({told})' if told else ''}: {len(repairs)}",
        *_first(f"{repair['video']}: {repair['kind']}: {repair['detail']}" for repair in repairs),
    ]
    if unnamed:
        names = first_names(unnamed, NAMED, quoted=False)
        lines.append(f"video files that no annotation names, left out: {len(unnamed)} ({names})")
    return "\n".join([*lines, *(f"warning: {text}" for text in document["warnings"])])


def class_table(per_class: Mapping[str, Mapping[str, int]], subsets: Mapping[str, int]) -> list[str]:
    """A line for each class with its actions in every subset, the rarest class first: typos are rare.

    subsets: number of videos in each, for the last line.
    """
    rows = sorted(per_class.items(), key=lambda row: (sum(row[1].values()), row[0]))
    head = ("actions of class", {name: name for name in subsets})
    table = [head, *rows[:SHOWN], ("videos", subsets)]
    width = 4 + max(len(label) for label, _ in table)
    lines = [
        f"  {label}".ljust(width)
        + "".join(f"{cells.get(name, 0):>{max(8, len(name)) + 2}}" for name in subsets)
        for label, cells in table
    ]
    if len(rows) > SHOWN:
        lines.insert(-1, f"  ... and {len(rows) - SHOWN} more classes, not as rare")
    return lines


def _first(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {line}" for line in lines[:SHOWN]] + more
