"""Reads annotations (ActivityNet-style JSON or CSV) into videos; what is wrong is refused by name and line.

JSON is the layout of ActivityNet (Caba Heilbron et al., CVPR 2015), which the copies of THUMOS-14 use too:
    {"database": {name: {"subset": name, "duration": seconds,
                         "annotations": [{"segment": [start, end], "label": name}]}}}
MultiTHUMOS's and Charades' {name: {"actions": [[class, start, end]]}} is read, too (numbered_annotations.py).
CSV has a header with the columns video, start, end, label and, if wanted, subset and duration, and one row
per action; a row with empty start, end and label announces a video without actions. Case and spaces in the
header do not matter, nor do spaces after a comma and empty lines; a column `type` is the label where there
is no other (as in THUMOS-14's files). Other columns are left out, and so are those without a name, which
spreadsheets write.
Times are those a player shows (see packing/probe.py). Public files need some patience: segments may be
numeric strings, the duration may be missing, segments may have zero length or leave the video (see
repair_actions).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .duplicates import SeenActions
from .files import parse_json
from .numbered_annotations import as_database, has_numbered_actions
from .schemas import Number, Text, exact
from .text import plain_number, short, shown

CSV_COLUMNS = ("video", "start", "end", "label")
CSV_OPTIONAL = ("subset", "duration")
DEFAULT_SUBSET = "training"
SAVE_AS = "save the file as UTF-8 (in Excel: CSV UTF-8)"
CONVERT = ": leantad convert-annotations makes such a table of it"


@exact
@dataclass(frozen=True)
class Action:
    """One annotated action; start and end in seconds."""

    start: Number
    end: Number
    label: Text


@dataclass(frozen=True)
class Video:
    """One annotated video: name, subset, duration in seconds (None: not stated), actions sorted by start."""

    key: str
    subset: str
    duration: float | None
    actions: tuple[Action, ...]


@exact
@dataclass(frozen=True)
class Repair:
    """One correction made to a video's annotations: what kind, and the values before and after."""

    video: Text
    kind: Text
    detail: Text


def read_annotations(path: str | Path, *, subset: str | None = None) -> dict[str, Video]:
    """Read a .json (ActivityNet layout) or .csv (video,start,end,label[,subset][,duration]) annotation file.

    subset: keep only the videos of this subset. A CSV without a subset column is all "training".
    Returns the videos by name, in the file's order.
    Raises ValueError, one line that names the file, the place in it, what stands there and what is wanted.
    """
    path = Path(path)
    readers = {".json": _read_json, ".csv": read_table}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: got a {path.suffix or 'nameless'} file, want annotations in .json or .csv")
    videos = readers[path.suffix.lower()](path, _read_text(path))
    if not videos:
        raise ValueError(
            f"{path}: no video in it, want at least one; docs/train-on-your-own-videos.md shows the layouts"
        )
    if subset is None:
        return videos
    chosen = {key: video for key, video in videos.items() if video.subset == subset}
    if not chosen:
        subsets = ", ".join(sorted({video.subset for video in videos.values()}))
        raise ValueError(f"{path}: no video of subset {subset!r}, want one of: {subsets}")
    return chosen


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Read class names, one per line; sorted. Raises ValueError on a repeated name or an empty file."""
    names = [line.strip() for line in _read_text(Path(path)).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: no class in it, want one class name per line")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: class {repeated[0]!r} stands there more than once, want each class once")
    return tuple(sorted(names))


def repair_actions(video: Video, duration: float | None) -> tuple[tuple[Action, ...], tuple[Repair, ...]]:
    """Make a video's actions fit its real duration; nothing is changed without a Repair that says so.

    duration: seconds that can really be decoded; None, for a video that is not here, leaves the ends alone.
    Dropped: zero length, actions wholly outside [0, duration], and what is then a duplicate (see
    duplicates.py). Clipped: actions partly outside. Returns the kept actions and the repairs, both by start
    time.
    """
    kept: list[Action] = []
    repairs: list[Repair] = []
    seen = SeenActions()
    limit = math.inf if duration is None else duration
    for action in video.actions:
        text = f"{shown(action.label, 80)} [{action.start:g}, {action.end:g}] s"
        fitted = Action(max(action.start, 0.0), min(action.end, limit), action.label)
        if action.end <= action.start:
            repairs.append(Repair(video.key, "zero-length", f"{text} dropped"))
            continue
        if fitted.end <= fitted.start:
            repairs.append(Repair(video.key, "outside", f"{text} dropped: the video has [0, {limit:g}] s"))
            continue
        if seen.has(fitted):
            repairs.append(Repair(video.key, "duplicate", f"{text} dropped"))
        else:
            if fitted != action:
                clipped = f"{text} became [{fitted.start:g}, {fitted.end:g}] s"
                repairs.append(Repair(video.key, "clipped", clipped))
            kept.append(fitted)
        seen.add(fitted)
    return tuple(kept), tuple(repairs)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text; {SAVE_AS}") from None


def _read_json(path: Path, text: str) -> dict[str, Video]:
    document = parse_json(text, where=path)
    database = document.get("database") if isinstance(document, dict) else None
    if database is None and has_numbered_actions(document):
        database = as_database(document)
    if not isinstance(database, dict):
        raise ValueError(
            f'{path}: no "database" object, want the ActivityNet layout {{"database": {{name: ...}}}}'
        )
    return {key: _video_of(f"{path}: database.{key}", key, entry) for key, entry in database.items()}


def _video_of(where: str, key: str, entry: object) -> Video:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: got {short(entry)}, want an object with subset and annotations")
    subset = entry.get("subset", DEFAULT_SUBSET)
    if not isinstance(subset, str) or not subset:
        raise ValueError(f"{where}.subset: got {short(subset)}, want a name such as training")
    annotations = entry.get("annotations", [])
    if not isinstance(annotations, list):
        raise ValueError(f"{where}.annotations: got {short(annotations)}, want a list")
    duration = _duration(f"{where}.duration", entry.get("duration"))
    actions = [_action_of(f"{where}.annotations[{i}]", item) for i, item in enumerate(annotations)]
    return Video(key, subset, duration, _by_start(actions))


def _action_of(where: str, item: object) -> Action:
    segment = item.get("segment") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(segment, list) or len(segment) != 2:
        raise ValueError(f'{where}: got {short(item)}, want {{"segment": [start, end], "label": name}}')
    start, end = (_seconds(f"{where}.segment", value) for value in segment)
    return _action(where, start, end, item.get("label"))


def _seconds(where: str, value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        seconds = plain_number(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: got {short(value)}, want a number of seconds") from None
    if not math.isfinite(seconds):
        raise ValueError(f"{where}: got {short(value)}, want a finite number of seconds")
    return seconds


def _seconds_of_cell(where: str, text: str) -> float:
    try:
        return _seconds(where, text)
    except ValueError as error:
        hint = "; leantad convert-annotations makes them of 1:23 and 83,5" if set(text) & set(":,") else ""
        raise ValueError(f"{error}{hint}") from None


def read_table(
    path: Path, text: str, *, separator: str = ",", seconds: Callable[[str, str], float] = _seconds_of_cell
) -> dict[str, Video]:
    """The videos of a CSV's text, as read_annotations; seconds: reads a time, given what errors call it."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        cells = next((row for row in rows if any(cell.strip() for cell in row)), [])
        header = _header(f"{path}, line {rows.line_num or 1}", cells)
        return _videos_of_rows(path, header, ((rows.line_num, row) for row in rows), seconds)
    except csv.Error as error:
        hint = _other_separator(text.lstrip().partition("\n")[0].split(separator))  # of a header in quotes
        raise ValueError(f"{path}, line {rows.line_num}: not CSV: {error}{hint and hint + CONVERT}") from None


def _header(where: str, cells: list[str]) -> list[str]:
    """The names of the columns, in lower case; empty for a column without one."""
    hint = _other_separator(cells)
    want = f"want the header {','.join(CSV_COLUMNS)}[,subset][,duration]{hint and hint + CONVERT}"
    got = short(",".join(cells), 200)[1:-1] or "an empty file"
    header = [cell.strip().lower() for cell in cells]
    if "label" not in header:
        header = ["label" if name == "type" else name for name in header]
    missing = [name for name in CSV_COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{where}: no column {missing[0]!r} in {got}; {want}")
    twice = [name for name in (*CSV_COLUMNS, *CSV_OPTIONAL) if header.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: a column stands twice in {got}: {twice[0]}; {want}")
    return header


def _other_separator(cells: list[str]) -> str:
    """A hint for a row that something else than commas seems to separate."""
    found = next((sign for sign in (";", "\t", "|") if len(cells) == 1 and sign in cells[0]), None)
    return f"; columns are separated by commas, not {found!r}" if found else ""


def _videos_of_rows(
    path: Path, header: list[str], rows: Iterable[tuple[int, list[str]]], seconds: Callable[[str, str], float]
) -> dict[str, Video]:
    metadata: dict[str, tuple[str, float | None]] = {}  # subset and duration of each video
    actions: dict[str, list[Action]] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        if not any(cell.strip() for cell in row):
            continue
        cells = _cells(where, header, row)
        name = cells["video"]
        stated = cells.get("duration")
        duration = _duration(f"{where}: duration", seconds(f"{where}: duration", stated) if stated else None)
        subset_and_duration = (cells.get("subset") or DEFAULT_SUBSET, duration)
        first = metadata.setdefault(name, subset_and_duration)
        if first != subset_and_duration:
            here, above = (_subset_and_duration(*each) for each in (subset_and_duration, first))
            raise ValueError(
                f"{where}: {shown(name, 80)} has {here}, further up {above}; want one for a video, or cut it"
            )
        actions.setdefault(name, [])
        if cells["start"] or cells["end"] or cells["label"]:
            start, end = (seconds(f"{where}: {side}", cells[side]) for side in ("start", "end"))
            actions[name].append(_action(where, start, end, cells["label"]))
    return {
        name: Video(name, subset, duration, _by_start(actions[name]))
        for name, (subset, duration) in metadata.items()
    }


def _subset_and_duration(subset: str, duration: float | None) -> str:
    return f"subset {short(subset)}" + ("" if duration is None else f" and duration {duration:g}")


def _cells(where: str, header: list[str], row: list[str]) -> dict[str, str]:
    """The cells of a row by column; one that names no video is an error.

    A spreadsheet adds empty cells to the end of a row, or leaves out those that stand under no name.
    """
    named = max(number for number, name in enumerate(header, 1) if name)
    while len(row) > named and not row[-1].strip():
        row = row[:-1]
    if not named <= len(row) <= len(header):
        names = ",".join(name for name in header if name)
        hint = '; quote a cell with a separator, "run, fast"' if len(row) > named else _other_separator(row)
        raise ValueError(f"{where}: got {len(row)} cells, want {named} ({short(names, 200)[1:-1]}){hint}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    if not cells["video"]:
        raise ValueError(f"{where}: video is empty, want its name")
    return cells


def _action(where: str, start: float, end: float, label: object) -> Action:
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}: label is {short(label)}, want a class name")
    if start > end:
        raise ValueError(f"{where}: start {start:g} s is after end {end:g} s, want start before end")
    return Action(start, end, label.strip())


def _duration(where: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = _seconds(where, value)
    if seconds < 0:
        raise ValueError(
            f"{where}: got {short(value)}, want seconds >= 0 (leave it out where it is not known)"
        )
    return seconds or None


def _by_start(actions: list[Action]) -> tuple[Action, ...]:
    return tuple(sorted(actions, key=lambda action: (action.start, action.end, action.label)))
