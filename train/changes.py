"""Which settings differ between a run and its continuation, and which of them may."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# Settings that decide how detections are measured in a validation; none of them touches a weight.
MEASURES = ("data.val_subset", "run.protocol", "post.")
MAY_CHANGE = (*MEASURES, "run.eval_every", "run.report_videos")


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    names = []
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            names.append(prefix + key)
    return names


def forbidden_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ, but for those that only steer validation and the report."""
    return [name for name in changed_keys(old, new) if not name.startswith(MAY_CHANGE)]


def measured_otherwise(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ and decide a measure: its numbers before and after cannot be compared."""
    return [name for name in changed_keys(old, new) if name.startswith(MEASURES)]


def measured_as(settings: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, but for those that decide a measure, which are as in `new`."""
    changed = deepcopy(dict(settings))
    for name in measured_otherwise(settings, new):
        group, key = name.split(".")
        changed[group][key] = new[group][key]
    return changed
