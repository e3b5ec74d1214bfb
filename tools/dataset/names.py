"""The names of subsets and classes: which look the same to a person, and which subsets to use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.text import shown

MEANINGS = {"train": "training", "val": "validation", "testing": "test"}  # other usual names of a subset
USUAL = {*MEANINGS, *MEANINGS.values()}


def normalised(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, which the eye overlooks, in composed letters."""
    composed = unicodedata.normalize("NFKC", name)  # macOS writes an umlaut as a letter and dots
    return re.sub(r"[\s_-]+", "", composed.casefold()) or name


def meaning_of(subset: str) -> str:
    """What the name of a subset usually means: training, validation, test, or the name itself, normalised."""
    return MEANINGS.get(normalised(subset), normalised(subset))


def is_test(subset: str) -> bool:
    """Whether a subset is called a test set, in whatever way."""
    return normalised(subset).startswith("test")


def choose_subsets(counts: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The subsets to train on and to validate on, by their usual names, else by size.

    A test set is never proposed for validation: a checkpoint chosen by it has not been tested. Where nothing
    else is left, both are the same.
    """
    usable = [name for name, row in counts.items() if row["packed"]]
    usable.sort(key=lambda name: (is_test(name), -counts[name]["packed"]))
    wanted = ["training"]
    if any(map(is_test, usable)):
        wanted.append("validation")  # THUMOS-14 trains on what it calls so
    train = next((name for want in wanted for name in usable if meaning_of(name) == want), usable[0])
    others = [name for name in usable if name != train and not is_test(name)]
    return train, next((name for name in others if meaning_of(name) == "validation"), [*others, train][0])


def name_warnings(subsets: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Warnings of subsets whose usual name is spelt otherwise, and of several names that look the same."""
    subsets = sorted(subsets)
    warnings = [
        f"subset {name!r} is not {normalised(name)!r}: names count letter by letter; correct the "
        "annotations, or use just this name in settings"
        for name in subsets
        if normalised(name) in USUAL and name != normalised(name)
    ]
    for group in _groups(subsets, meaning_of):
        quoted = _quoted(group)
        warnings.append(f"subsets {quoted} are {len(group)} subsets: a run trains or validates on one")
    for group in _groups(labels, normalised):
        warnings.append(
            f"labels {_quoted(group)} are {len(group)} classes; if you mean one, spell it in one way"
        )
    return warnings


def _groups(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _quoted(names: Sequence[str]) -> str:
    """The names; in code points where two look the same."""
    looks = [unicodedata.normalize("NFKC", name) for name in names]
    same = len(set(looks)) < len(looks)
    return " and ".join(ascii(name[:80]) if same else repr(shown(name, 80)) for name in names)
