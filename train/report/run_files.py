"""Reads what a run folder holds for its report; whatever is missing is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from pipeline.files import read_json
from pipeline.schemas import Count, Text, read_yaml, validated
from train.detections import Results, read_detections
from train.progress import checked_metrics, read_events
from train.trust import unsigned


@dataclass(frozen=True)
class RunFiles:
    """Logged events by rising step, final metrics, detections, settings; None or empty where missing."""

    name: str
    events: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    detections: Results | None
    settings: dict[str, Any]
    settings_text: str

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, such as "train" or "eval"."""
        return [event for event in self.events if event.get("event") == kind]


@with_config(ConfigDict(extra="allow"))
class _RunGroup(TypedDict, total=False):
    epochs: Count
    report_videos: Count


@with_config(ConfigDict(extra="allow"))
class _EncoderGroup(TypedDict, total=False):
    backbone: Text


@with_config(ConfigDict(extra="allow"))
class _DataGroup(TypedDict, total=False):
    num_features: Count | None


@with_config(ConfigDict(extra="allow"))
class _SettingsFile(TypedDict, total=False):
    """What the report reads of settings.yaml; older releases had other settings."""

    run: _RunGroup
    encoder: _EncoderGroup
    data: _DataGroup


_SETTINGS = TypeAdapter(_SettingsFile)


def read_run(folder: Path) -> RunFiles:
    """Everything the report is made of. Without metrics.json, the last evaluation in the log counts.

    ValueError if metrics.json, detections.json or settings.yaml is damaged.
    """
    events, _ = read_events(folder / "log.jsonl")
    metrics_path, detections_path = folder / "metrics.json", folder / "detections.json"
    metrics = None
    if metrics_path.is_file():
        metrics = checked_metrics(read_json(metrics_path), where=metrics_path)
    if metrics is None:
        metrics = next((e["metrics"] for e in reversed(events) if e.get("event") == "eval"), None)
    settings_path = folder / "settings.yaml"
    settings = read_yaml(settings_path) if settings_path.is_file() else {}
    validated(_SETTINGS, settings or {}, where=settings_path, advice="it is damaged; remove it")
    return RunFiles(
        name=folder.resolve().name,
        events=events,
        metrics=metrics,
        detections=read_detections(detections_path).results if detections_path.is_file() else None,
        settings=settings or {},
        settings_text=unsigned(settings_path.read_text(encoding="utf-8")) if settings else "",
    )
