"""The report's key figures: accuracy, time, speed and memory of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from pipeline.text import counted, duration_text
from train.evaluation.operating_point import TIOU, OperatingPoint
from train.report.page import render
from train.report.run_files import RunFiles


@dataclass(frozen=True)
class KeyFigure:
    """A figure as text, what it is, and a note in small letters."""

    value: str
    label: str
    note: str = ""


def key_figures_section(run: RunFiles, point: OperatingPoint | None) -> Markup:
    """point: None for a run without detections."""
    figures = [*accuracy_figures(run.metrics or {}, point), *cost_figures(run)]
    return render("key_figures.html.j2", {"figures": figures})


def accuracy_figures(metrics: Mapping[str, Any], point: OperatingPoint | None) -> Iterator[KeyFigure]:
    """mAP, and F1 at the operating point where anything is right."""
    if metrics:
        low, high = metrics["tiou"][0], metrics["tiou"][-1]
        yield KeyFigure(percent(metrics["average_mAP"]), "average mAP", f"tIoU {low:g} to {high:g}")
        yield KeyFigure(percent(metrics["mAP"][0]), f"mAP at tIoU {low:g}")
    if point is not None and point.recall:
        note = f"precision {100 * point.precision:.0f} %, recall {100 * point.recall:.0f} %"
        yield KeyFigure(f"{point.f1:.2f}", f"best F1 at tIoU {TIOU:g}", note)


def cost_figures(run: RunFiles) -> Iterator[KeyFigure]:
    """Training time, optimizer steps, peak memory; each only where it was logged."""
    seconds = (run.metrics or {}).get("seconds", {})
    if seconds.get("train"):
        note = f"evaluation {duration_text(seconds.get('eval', 0))}"
        yield KeyFigure(duration_text(seconds["train"]), "training", note)
    steps = run.events_of("train")
    if steps:
        count, noun = counted(steps[-1]["step"], "optimizer step").split(" ", 1)
        yield KeyFigure(count, noun, speed_note(steps))
    memory = [event["memory_mib"] for event in steps if event.get("memory_mib")]
    if memory:
        yield KeyFigure(memory_text(max(memory)), "peak memory", device_note(run))


def speed_note(steps: Sequence[Mapping[str, Any]]) -> str:
    """Median seconds of a step, and the share of time spent waiting for data."""
    step = [event["step_seconds"] for event in steps if "step_seconds" in event]
    data = [event["data_seconds"] for event in steps if "data_seconds" in event]
    if not step or not data:
        return ""
    waiting = 100 * median(data) / max(median(step) + median(data), 1e-9)
    return f"{median(step):.2g} s each, {waiting:.0f} % waiting for data"


def device_note(run: RunFiles) -> str:
    """Number of processes and device of the run's last start."""
    starts = run.events_of("start")
    if not starts:
        return ""
    ranks = starts[-1].get("world_size", 1)
    return f"{counted(ranks, 'process', 'processes')} on {starts[-1].get('device', '?')}"


def percent(fraction: float) -> str:
    """93.2 %, with a thin space."""
    return f"{100 * fraction:.1f}\u2009%"


def memory_text(mib: float) -> str:
    """512 MiB or 2.0 GiB."""
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
