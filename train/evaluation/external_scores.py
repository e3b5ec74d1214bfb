"""Reads the scores of video-level classifiers, in the forms in which the field publishes them.

.json   {video: {label: score}}, {video: [{"label", "score"}]}, or {video: [score of each class]} with the
        names under "class" or "classes"; bare or under "results" (CUHK's on ActivityNet). HACS's is the
        last with [[...]] for each video, and logits
.npy    UntrimmedNet's on THUMOS-14: a row for each test video, a column for each of the 101 classes
.csv    a header `video,label,score`, or `video` and the name of each class
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import read_json
from pipeline.text import plain_number, short

# Columns, counted from 1, of THUMOS-14's detection classes among its 101.
THUMOS_COLUMNS = {
    7: "BaseballPitch", 9: "BasketballDunk", 12: "Billiards", 21: "CleanAndJerk", 22: "CliffDiving",
    23: "CricketBowling", 24: "CricketShot", 26: "Diving", 31: "FrisbeeCatch", 33: "GolfSwing",
    36: "HammerThrow", 40: "HighJump", 45: "JavelinThrow", 51: "LongJump", 68: "PoleVault", 79: "Shotput",
    85: "SoccerPenalty", 92: "TennisSwing", 93: "ThrowDiscus", 97: "VolleyballSpiking",
}  # fmt: skip
THUMOS_CLASSES = 101
WANT = 'want {label: score}, [{"label", "score"}] or a list with a score for each name under "class", finite'


def read_external_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores of a video-level classifier, as {video: {label: score}}; see this file's first lines.

    Rows with a negative number in one of them are logits: a softmax makes scores of all. ValueError, one
    line, for anything else. Nothing in the file is executed.
    """
    ending = Path(path).suffix.lower()
    if ending == ".npy":
        return _read_untrimmednet(path)
    scores = _read_csv(path) if ending == ".csv" else _read_json_scores(path)
    if not scores:
        raise ValueError(f"{path}: has scores of no video")
    return scores


def _read_json_scores(path: Path) -> dict[str, dict[str, float]]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: got {short(document)}, want an object {{video: {{label: score}}}}")
    table = document["results"] if isinstance(document.get("results"), dict) else document
    names: list[Any] = next(
        (document[n] for n in ("class", "classes") if isinstance(document.get(n), list)), []
    )
    if table is document:  # the names stand beside the videos
        table = {key: entry for key, entry in document.items() if entry is not names}
    found, rows = {}, {}
    for key, entry in table.items():
        where = f"{path}: {short(key, quoted=False)}"
        values = _unwrapped(entry)
        if isinstance(values, list) and values and not isinstance(values[0], dict):
            rows[key] = _row(values, names, where)
        else:
            found[key] = _label_scores(values, where)
    return found | _scores_of_rows(rows, [str(name) for name in names])


def _unwrapped(entry: Any) -> Any:
    """[[1, 2]] is [1, 2]."""
    return entry[0] if isinstance(entry, list) and len(entry) == 1 and isinstance(entry[0], list) else entry


def _row(values: list[Any], names: Sequence[Any], where: str) -> list[float]:
    """A score for each class; ValueError for other lengths, and for what is no number."""
    try:
        numbers = [_score(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if not numbers or len(numbers) != len(names) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: got {short(values)} for {len(names)} class names, {WANT}")
    return numbers


def _label_scores(entry: Any, where: str) -> dict[str, float]:
    try:
        pairs = entry.items() if isinstance(entry, dict) else [(i["label"], i["score"]) for i in entry]
        scores = {str(label): _score(score) for label, score in pairs}
    except (KeyError, TypeError, ValueError, OverflowError):
        scores = {}
    if not scores or not all(math.isfinite(score) and score >= 0 for score in scores.values()):
        raise ValueError(f"{where}: got {short(entry)}, {WANT} and not negative")
    return scores


def _score(value: Any) -> float:
    return plain_number(value) if isinstance(value, str) else float(value)


def _scores_of_rows(rows: dict[str, list[float]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """{video: {label: score}} of rows over the same classes; logits, of any row, become probabilities."""
    if any(min(row) < 0 for row in rows.values()):
        rows = {key: _softmax(row) for key, row in rows.items()}
    return {key: dict(zip(names, row, strict=True)) for key, row in rows.items()}


def _softmax(row: Sequence[float]) -> list[float]:
    powers = np.exp(np.array(row) - max(row))
    return list(map(float, powers / powers.sum()))


def _read_untrimmednet(path: Path) -> dict[str, dict[str, float]]:
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: no plain .npy file ({short(error, 90)}); want no pickle") from None
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f" or table.ndim != 2:
        raise ValueError(f"{path}: want a table of numbers, a row for each video of THUMOS-14's test set")
    if table.shape[1] != THUMOS_CLASSES or not np.isfinite(table).all():
        raise ValueError(
            f"{path}: got {table.shape[1]} columns, want {THUMOS_CLASSES} finite ones, of THUMOS-14's "
            "classes; other classifiers' scores as .csv or .json, which name their classes"
        )
    chosen = table[:, [column - 1 for column in THUMOS_COLUMNS]].astype(np.float64)
    rows = {f"video_test_{number:07d}": row for number, row in enumerate(chosen.tolist(), 1)}
    return _scores_of_rows(rows, list(THUMOS_COLUMNS.values()))


def _read_csv(path: Path) -> dict[str, dict[str, float]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            header, *lines = [line for line in csv.reader(file) if line]
        except (ValueError, UnicodeDecodeError, csv.Error):
            raise ValueError(f"{path}: no CSV, or empty; want a header, video,label,score") from None
    if header[:1] != ["video"] or len(header) < 2 or len(set(header)) < len(header):
        raise ValueError(f"{path}: header {short(header)}, want video,label,score or video and the classes")
    is_long = header == ["video", "label", "score"]
    found: dict[str, dict[str, float]] = {}
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(lines, 2):
        where = f"{path}: row {number}"
        if len(line) != len(header) or (not is_long and line[0] in rows):
            raise ValueError(f"{where}: got {short(line)}, want {len(header)} values, and each video once")
        if is_long:
            labels = found.setdefault(line[0], {})
            if line[1] in labels:
                raise ValueError(f"{where}: {short(line[0])} has a score for {short(line[1])} already")
            labels |= _label_scores({line[1]: line[2]}, where)
        else:
            rows[line[0]] = _row(list(line[1:]), header[1:], where)
    return found or _scores_of_rows(rows, header[1:])
