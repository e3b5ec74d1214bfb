"""The layout that MultiTHUMOS and Charades are passed on in, as that of ActivityNet.

    {name: {"subset": name, "duration": seconds, "actions": [[class, start, end], ...]}}
Classes are numbers there, and so are labelled "class 12"; their names are in a list beside the file.
"""

from __future__ import annotations

from typing import Any


def has_numbered_actions(document: object) -> bool:
    """Whether a JSON document is of this layout, at least in its first entry."""
    first = next(iter(document.values()), None) if isinstance(document, dict) else None
    return isinstance(first, dict) and isinstance(first.get("actions"), list)


def as_database(document: dict[str, Any]) -> dict[str, Any]:
    """The "database" of ActivityNet's layout; what is not as it should be stays, for its reader to refuse."""
    return {key: _entry(value) for key, value in document.items()}


def _entry(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("actions"), list):
        return value
    rest = {name: item for name, item in value.items() if name != "actions"}
    return {**rest, "annotations": [_annotation(item) for item in value["actions"]]}


def _annotation(item: Any) -> Any:
    if (
        not isinstance(item, list)
        or len(item) != 3
        or not isinstance(item[0], int)
        or isinstance(item[0], bool)
    ):
        return item
    return {"segment": item[1:], "label": f"class {item[0]}"}
