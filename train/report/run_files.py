"""Reads what a run folder holds for its report; whatever is missing is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.files import read_json
from train.detections import Results, read_detections
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


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; one that a kill cut in half is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def read_run(folder: Path) -> RunFiles:
    """Everything the report is made of. Without metrics.json, the last evaluation in the log counts.

    ValueError if metrics.json or detections.json is damaged.
    """
    events = read_events(folder / "log.jsonl")
    metrics_path, detections_path = folder / "metrics.json", folder / "detections.json"
    metrics = read_json(metrics_path) if metrics_path.is_file() else None
    if metrics is None:
        metrics = next((e["metrics"] for e in reversed(events) if e.get("event") == "eval"), None)
    settings_path = folder / "settings.yaml"
    text = settings_path.read_text(encoding="utf-8") if settings_path.is_file() else ""
    return RunFiles(
        name=folder.resolve().name,
        events=events,
        metrics=metrics,
        detections=read_detections(detections_path).results if detections_path.is_file() else None,
        settings=yaml.safe_load(text) or {},
        settings_text=unsigned(text),
    )
