"""The run's report: one HTML file that needs nothing else, made from what the run folder holds.

Reads log.jsonl, metrics.json, detections.json and settings.yaml, whichever are there; a run with one
evaluation, or one that was stopped before any, gets its report too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pipeline.files import write_text
from pipeline.text import counted
from train.detections import Results, read_detections
from train.evaluation.evaluate import evaluate
from train.evaluation.operating_point import (
    TIOU,
    MatchedDetections,
    OperatingPoint,
    matched_detections,
    operating_point,
    precision_recall,
    video_scores,
)
from train.report.charts import column_chart, loss_card, map_chart, precision_chart
from train.report.diagnosis_charts import error_section
from train.report.page import PAGE, card, duration_text, memory_text, percent, tile
from train.report.timelines import about_video, choose_videos, timeline

DEFAULT_VIDEOS = 8
MANY_CLASSES = 60  # of more classes, the best and the worst are shown and the rest folded away


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says: logged events by rising step, final metrics, detections, settings."""

    name: str
    events: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    detections: Results | None
    settings: dict[str, Any]
    settings_text: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
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
    """Everything the report is made of. Without metrics.json, the last evaluation in the log counts."""
    events = read_events(folder / "log.jsonl")
    metrics_path, detections_path = folder / "metrics.json", folder / "detections.json"
    metrics = json.loads(metrics_path.read_text(encoding="utf-8")) if metrics_path.is_file() else None
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
        settings_text=text,
    )


def key_figures(run: RunFiles, point: OperatingPoint | None) -> str:
    """The tiles at the top."""
    tiles = []
    metrics = run.metrics
    if metrics:
        low, high = metrics["tiou"][0], metrics["tiou"][-1]
        tiles.append(tile(percent(metrics["average_mAP"]), "average mAP", f"tIoU {low:g} to {high:g}"))
        tiles.append(tile(percent(metrics["mAP"][0]), f"mAP at tIoU {low:g}"))
    if point is not None and point.recall:
        note = f"precision {100 * point.precision:.0f} %, recall {100 * point.recall:.0f} %"
        tiles.append(tile(f"{point.f1:.2f}", f"best F1 at tIoU {TIOU:g}", note))
    seconds = (metrics or {}).get("seconds", {})
    if seconds.get("train"):
        note = f"evaluation {duration_text(seconds.get('eval', 0))}"
        tiles.append(tile(duration_text(seconds["train"]), "training", note))
    steps = run.of("train")
    if steps:
        count, noun = counted(steps[-1]["step"], "optimizer step").split(" ", 1)
        tiles.append(tile(count, noun, speed_note(steps)))
    memory = [event["memory_mib"] for event in steps if event.get("memory_mib")]
    if memory:
        tiles.append(tile(memory_text(max(memory)), "peak memory", device_note(run)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def speed_note(steps: list[dict[str, Any]]) -> str:
    """Median seconds of a step, and how much of it was waiting for data."""
    step = [event["step_seconds"] for event in steps if "step_seconds" in event]
    data = [event["data_seconds"] for event in steps if "data_seconds" in event]
    if not step or not data:
        return ""
    waiting = 100 * median(data) / max(median(step) + median(data), 1e-9)
    return f"{median(step):.2g} s each, {waiting:.0f} % waiting for data"


def device_note(run: RunFiles) -> str:
    starts = run.of("start")
    if not starts:
        return ""
    ranks = starts[-1].get("world_size", 1)
    return f"{counted(ranks, 'process', 'processes')} on {starts[-1].get('device', '?')}"


def class_rows(metrics: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    """Per-class AP, the best first; of very many, the middle is folded away."""
    counts = Counter(action.label for video in truth.values() for action in video.actions)
    table = {name: (sum(ap) / len(ap), ap[0]) for name, ap in metrics["per_class"].items()}
    rows = [
        f'<div class="class" title="{escape(name)}: average {100 * mean:.1f} %, {100 * loose:.1f} % at tIoU '
        f'{metrics["tiou"][0]:g}, {counts[name]} true actions"><span class="label">{escape(name)}</span>'
        f'<span class="track"><i class="loose" style="width:{100 * loose:.1f}%"></i>'
        f'<i class="mean" style="width:{100 * mean:.1f}%"></i></span>'
        f'<b>{100 * mean:.1f}</b><span class="count">{counts[name]:,}</span></div>'
        for name, (mean, loose) in sorted(table.items(), key=lambda item: -item[1][0])
    ]
    longest = max((len(name) for name in table), default=0)
    opening = f'<div class="classes" style="--label:{min(longest, 30) + 1}ch">'
    if len(rows) <= MANY_CLASSES:
        return f"{opening}{''.join(rows)}</div>"
    ends = MANY_CLASSES // 3
    best, middle, worst = (
        f"{opening}{''.join(part)}</div>" for part in (rows[:ends], rows[ends:-ends], rows[-ends:])
    )
    between = f"{len(rows) - 2 * ends} classes between them"
    return f"{best}<details><summary>{between}</summary>{middle}</details>{worst}"


def video_cards(
    judged: MatchedDetections, point: OperatingPoint, truth: Mapping[str, Any], count: int
) -> str:
    """The timelines, from the best video to the worst."""
    scores = video_scores(judged, point)
    cards = []
    for number in choose_videos(scores, count):
        key = judged.keys[number]
        video = truth[key]
        length = getattr(video, "duration", None)
        about = about_video(judged, number, length, point)
        cards.append(
            f'<figure class="video"><figcaption><b>{escape(key)}</b><span>{about}</span>'
            f'<span class="score">F1 {scores[number]:.2f}</span></figcaption>'
            f"{timeline(judged, number, length, point)}</figure>"
        )
    return "".join(cards)


KEY = (
    '<p class="key"><span><i class="k-truth"></i>true action</span>'
    '<span><i class="k-hit"></i>detection, right</span>'
    '<span><i class="k-wrong"></i>detection, wrong or a repeat</span>'
    '<span><i class="k-weak"></i>below the cut</span></p>'
)


def timelines(judged: MatchedDetections, point: OperatingPoint, truth: Mapping[str, Any], count: int) -> str:
    """The section with a key and the videos; says how they were chosen."""
    total = sum(bool(video.actions) for video in truth.values())
    if not count or not total:
        return ""
    most = f"{count} of {counted(total, 'video')}, from the best to the worst in even steps."
    chosen = most if count < total else f"{counted(total, 'video')} with true actions, the best first."
    where = "No detection is right at this tIoU, so there is no cut."
    if point.recall:
        where = f"Cut: the score {point.score:.3g}, where F1 over all videos is best."
    note = (
        f"{chosen} Of each the right detections and the best of "
        f"the others, high scores on top. Right: matched with a true action of its class at tIoU {TIOU:g} or "
        f"more, each action once. {where}"
    )
    cards = video_cards(judged, point, truth, count)
    return f'<h2>Detections against truth</h2><p class="note">{note}</p>{KEY}{cards}'


def accuracy(
    run: RunFiles, truth: Mapping[str, Any], judged: MatchedDetections | None, point: OperatingPoint | None
) -> str:
    """mAP by threshold, precision over recall, AP by class."""
    metrics = run.metrics
    if not metrics:
        return ""
    columns = [(f"{t:g}", 100 * value) for t, value in zip(metrics["tiou"], metrics["mAP"], strict=True)]
    counts = (
        counted(metrics["num_videos"], "video"),
        counted(metrics["num_truth"], "true action"),
        counted(len(metrics["per_class"]), "class", "classes"),
        counted(metrics["num_detections"], "detection"),
    )
    chart = column_chart(columns, x_label="tIoU threshold", title="mAP by tIoU, percent", unit=" %")
    cards = card("mAP by tIoU", chart)
    if judged is not None and point is not None and point.recall:
        best = (100 * point.recall, 100 * point.precision)
        chart = precision_chart(precision_recall(judged), best, tiou=TIOU)
        cards += card(f"Precision over recall at tIoU {TIOU:g}", chart, "All classes; the dot: best F1.")
    note = (
        f"Dark: average over all tIoU; pale: at tIoU {metrics['tiou'][0]:g}. Then the average in percent and "
        "the number of true actions."
    )
    by_class = card("AP by class", class_rows(metrics, truth), note, wide=True)
    said = f"{', '.join(counts)}. Protocol: {escape(str(metrics['protocol']))}."
    return f'<h2>Accuracy</h2><p class="note">{said}</p><div class="grid2">{cards}</div>{by_class}'


def errors(run: RunFiles, truth: Mapping[str, Any]) -> str:
    """Kinds of errors and what they cost; nothing without detections and an evaluation."""
    if not run.metrics or run.detections is None:
        return ""
    tiou, protocol = run.metrics["tiou"], str(run.metrics["protocol"])
    measured = evaluate(truth, run.detections, tiou=tiou, protocol=protocol, diagnosis=True, bins=protocol)
    return error_section(measured)


def learning(run: RunFiles) -> str:
    """The curves. Without a logged evaluation, the final metrics stand at the last epoch."""
    steps, evals = run.of("train"), run.of("eval")
    if not evals and run.metrics:
        last = max((event.get("epoch", 0) for event in steps), default=0)
        evals = [{"epoch": last, "metrics": run.metrics}]
    cards = loss_card(steps) if steps else ""
    cards += card("mAP on the validation videos", map_chart(evals)) if evals else ""
    missing = [what for what, there in (("step", steps), ("validation", evals)) if not there]
    note = f'<p class="note">No {" and no ".join(missing)} was logged so far.</p>' if missing else ""
    return f'<h2>Learning</h2>{note}<div class="grid2">{cards}</div>'


def date_of(run: RunFiles, folder: Path) -> str:
    """When the run last wrote to its log, in UTC."""
    times = [event["time"] for event in run.events if isinstance(event.get("time"), (int, float))]
    moment = max(times) if times else folder.stat().st_mtime
    return datetime.fromtimestamp(moment, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def subtitle(run: RunFiles, folder: Path) -> str:
    """Date, backbone, epochs."""
    facts = [date_of(run, folder)]
    backbone = (run.settings.get("encoder") or {}).get("backbone")
    epochs = (run.settings.get("run") or {}).get("epochs")
    facts += [str(backbone)] if backbone else []
    facts += [counted(int(epochs), "epoch")] if epochs else []
    stops = run.of("stop")
    if stops and not stops[-1].get("complete", True):
        facts.append("stopped before the end")
    return " &middot; ".join(escape(fact) for fact in facts)


def build_page(run: RunFiles, folder: Path, truth: Mapping[str, Any]) -> str:
    """The whole document."""
    judged = matched_detections(truth, run.detections) if run.detections is not None else None
    point = operating_point(judged) if judged is not None else None
    count = (run.settings.get("run") or {}).get("report_videos", DEFAULT_VIDEOS)
    shown = timelines(judged, point, truth, int(count)) if judged is not None and point is not None else ""
    settings = ""
    if run.settings_text:
        text = escape(run.settings_text)
        settings = f"<h2>Settings</h2><details><summary>settings.yaml</summary><pre>{text}</pre></details>"
    measured = accuracy(run, truth, judged, point) + errors(run, truth)
    body = key_figures(run, point) + learning(run) + measured + shown + settings
    return PAGE.format(name=escape(run.name), subtitle=subtitle(run, folder), body=body)


def write_report(run_folder: str | Path, *, truth: Mapping[str, Any]) -> Path:
    """Write run_folder/report.html and return its path.

    truth: {video: object with .actions and .duration}, as for `evaluate`. ValueError if a file of the run is
    damaged.
    """
    folder = Path(run_folder)
    page = build_page(read_run(folder), folder, truth)
    path = folder / "report.html"
    write_text(path, page)
    return path
