"""The run's report: one HTML file that needs nothing else, made from what the run folder holds.

Reads log.jsonl, metrics.json, detections.json and settings.yaml, whichever are there; a run with one
evaluation, or one that was stopped before any, gets its report too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from markupsafe import Markup

from pipeline.annotations import Video
from pipeline.files import write_text
from pipeline.text import counted
from train.evaluation.evaluate import evaluate
from train.evaluation.operating_point import matched_detections, operating_point
from train.report.accuracy import accuracy_section
from train.report.errors import error_section
from train.report.key_figures import key_figures_section
from train.report.learning import learning_section
from train.report.page import render
from train.report.run_files import RunFiles, read_run
from train.report.timelines import timelines_section

FOLDER = Path(__file__).parent
DEFAULT_VIDEOS = 8


def write_report(run_folder: str | Path, *, ground_truth: Mapping[str, Video]) -> Path:
    """Write run_folder/report.html and return its path.

    ValueError if a file of the run is damaged.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    values = {
        "name": run.name,
        "subtitle": subtitle(run, folder),
        "style": Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        "sections": sections(run, ground_truth),
        "settings_text": run.settings_text,
    }
    path = folder / "report.html"
    write_text(path, render("report.html.j2", values))
    return path


def sections(run: RunFiles, ground_truth: Mapping[str, Video]) -> list[Markup]:
    """The sections that the run has something for, in the page's order."""
    matches = matched_detections(ground_truth, run.detections) if run.detections is not None else None
    point = operating_point(matches) if matches is not None else None
    made = [key_figures_section(run, point), learning_section(run)]
    if run.metrics:
        made.append(accuracy_section(run.metrics, ground_truth, matches, point))
    if run.metrics and run.detections is not None:
        tiou, protocol = run.metrics["tiou"], str(run.metrics["protocol"])
        metrics = evaluate(
            ground_truth, run.detections, tiou=tiou, protocol=protocol, diagnosis=True, bins=protocol
        )
        made.append(error_section(metrics))
    count = int((run.settings.get("run") or {}).get("report_videos", DEFAULT_VIDEOS))
    if matches is not None and point is not None and count and any(v.actions for v in ground_truth.values()):
        made.append(timelines_section(matches, point, ground_truth, count=count))
    return made


def subtitle(run: RunFiles, folder: Path) -> list[str]:
    """Date, backbone or width of the features, epochs."""
    parts = [date_of(run, folder)]
    backbone = (run.settings.get("encoder") or {}).get("backbone")
    width = (run.settings.get("data") or {}).get("num_features")
    backbone = f"features of width {width}" if width else backbone
    epochs = (run.settings.get("run") or {}).get("epochs")
    parts += [str(backbone)] if backbone else []
    parts += [counted(int(epochs), "epoch")] if epochs else []
    stops = run.events_of("stop")
    if stops and not stops[-1].get("complete", True):
        parts.append("stopped before the end")
    return parts


def date_of(run: RunFiles, folder: Path) -> str:
    """When the run last wrote to its log, in UTC."""
    times = [event["time"] for event in run.events if isinstance(event.get("time"), (int, float))]
    moment = max(times) if times else folder.stat().st_mtime
    return datetime.fromtimestamp(moment, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
