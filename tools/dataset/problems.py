"""Rejected videos and repairs as lines of text, as many as fit on a screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.text import on_one_line


def first_lines(lines: Iterable[str], count: int) -> list[str]:
    """The first `count` of the lines, indented, and how many more there are."""
    lines = list(lines)
    more = [f"  ... and {len(lines) - count} more"] if len(lines) > count else []
    return [f"  {on_one_line(line)}" for line in lines[:count]] + more


def repair_lines(repairs: Iterable[Mapping[str, Any]], count: int) -> list[str]:
    """The first `count` of the repairs, each with its video."""
    return first_lines((f"{item['video']}: {item['kind']}: {item['detail']}" for item in repairs), count)


def kinds_text(repairs: Iterable[Mapping[str, Any]]) -> str:
    """How many of each kind: ` (clipped 1, duplicate 2)`; empty without repairs."""
    kinds = Counter(item["kind"] for item in repairs)
    text = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    return f" ({text})" if text else ""
