"""Validation inside a run: every rank detects its share of the videos, all agree on one mAP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.files import write_text
from train.detections import write_detections
from train.distributed import barrier, rank, world_size
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.files import facts_of
from train.inference import detect, infer
from train.report.build import write_report
from train.run import Run


def gather(folder: Path, mine: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The detections of all ranks, by way of the run folder (JSON, so that nothing is unpickled)."""
    write_text(folder / f"detections.rank{rank()}.json", json.dumps(mine))
    barrier()
    merged: dict[str, list[dict]] = {}
    for number in range(world_size()):
        merged.update(json.loads((folder / f"detections.rank{number}.json").read_text()))
    barrier()
    (folder / f"detections.rank{rank()}.json").unlink()
    return merged


def validate(run: Run) -> dict[str, Any]:
    """Detect on the validation subset; writes detections.json, returns the metrics (same on every rank)."""
    settings, dataset = run.settings, run.dataset
    subset = settings.data.val_subset
    mine = detect(infer(run.engine, run.val_loader), dataset.classes, settings.post)
    detections = gather(run.folder, mine)
    truth = dataset.truth(subset)
    results = {key: detections.get(key, []) for key in truth}  # a rejected video stays, with nothing found
    metrics = mean_average_precision(truth, results, protocol=settings.run.protocol)
    if rank() == 0:
        write_detections(
            run.folder / "detections.json",
            results,
            meta={"subset": subset, "step": run.progress.step, **facts_of(dataset, subset)},
        )
    return metrics


def report(run: Run) -> None:
    """report.html from what the run folder holds so far."""
    if rank() == 0:
        write_report(run.folder, truth=run.dataset.truth(run.settings.data.val_subset))


def finish(run: Run) -> None:
    """After the last step: metrics.json with the times, and the last report.html."""
    if rank() == 0:
        seconds = {name: round(value, 2) for name, value in run.progress.seconds.items()}
        metrics = {**run.progress.metrics, "seconds": seconds}
        write_text(run.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    report(run)
