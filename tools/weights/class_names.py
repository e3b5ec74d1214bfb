"""The names of a foreign detector's classes, in the order of its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files import parse_json
from pipeline.text import short


def read_class_names(path: Path) -> list[str]:
    """The lines of a text file, or the labels of annotations by their `label_id`.

    Raises ValueError for a file that is neither, or that leaves a number without a name or with two.
    """
    if not path.is_file():
        raise ValueError(f"--classes {path}: no such file; want one with a name a line")
    if path.suffix == ".json":
        return _names_by_number(path)
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    return [line for line in lines if line]


def _names_by_number(path: Path) -> list[str]:
    numbered: dict[int, str] = {}
    document = parse_json(path.read_bytes(), where=path)
    for action in _actions_in(document):
        number, name = action.get("label_id"), action.get("label")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            raise ValueError(
                f"--classes {path}: an action has no label_id, {short(action)}; want ActionFormer's "
                "annotations, or a text file with a name a line"
            )
        if numbered.setdefault(number, name) != name:
            raise ValueError(f"--classes {path}: {number} is both {numbered[number]!r} and {name!r}")
    if sorted(numbered) != list(range(len(numbered))) or not numbered:
        raise ValueError(
            f"--classes {path}: got numbers {short(sorted(numbered))}, want all from 0 on; give a text file "
            "with a name a line"
        )
    return [numbered[number] for number in sorted(numbered)]


def _actions_in(document: Any) -> list[dict[str, Any]]:
    """All annotated actions of ActivityNet's layout that are objects."""
    database = document.get("database") if isinstance(document, dict) else None
    entries = database.values() if isinstance(database, dict) else ()
    lists = [entry.get("annotations") for entry in entries if isinstance(entry, dict)]
    return [action for each in lists if isinstance(each, list) for action in each if isinstance(action, dict)]
