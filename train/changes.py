"""Which settings differ between a run and its continuation, and which of them may."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# Settings that decide how detections are measured in a validation; none of them touches a weight.
MEASURES = ("data.val_subset", "run.protocol", "post.")
# Settings that decide the memory and the time of a step; what is computed is the same, but for rounding.
COSTS = (
    "data.decode_chunk_mib",
    "data.decode_workers",
    "data.prefetch",
    "encoder.clips_per_forward",
    "encoder.keep_graphs",
    "encoder.slice_mib",
)
# Settings that decide when a run validates, saves and reports, and how long it goes on in spite of failures.
STEERING = (
    "data.limits.",
    "data.skip_bad",
    "run.checkpoint_every",
    "run.eval_every",
    "run.log_every",
    "run.lost_after_seconds",
    "run.report_videos",
)
MAY_CHANGE = (*MEASURES, *COSTS, *STEERING)


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
    """The settings that differ and decide the weights, which those in MAY_CHANGE do not.

    Batch norm that trains takes its statistics over the clips of a forward, so that their number does, too.
    """
    decisive = ("encoder.clips_per_forward",) if old["encoder"]["train_batch_norm"] else ()
    changed = changed_keys(old, new)
    return [name for name in changed if name in decisive or not name.startswith(MAY_CHANGE)]


def measured_otherwise(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ and decide a measure: its numbers before and after cannot be compared."""
    return [name for name in changed_keys(old, new) if name.startswith(MEASURES)]


def other_costs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ and decide memory and time, which before and after cannot be compared."""
    return [name for name in changed_keys(old, new) if name.startswith(COSTS)]


def measured_as(settings: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, but for those that decide a measure, which are as in `new`."""
    changed = deepcopy(dict(settings))
    for name in measured_otherwise(settings, new):
        group, key = name.split(".")
        changed[group][key] = new[group][key]
    return changed
