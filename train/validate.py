"""Validation inside a run: every rank detects in its share of the videos, each computes the mAP of all."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pipeline.annotations import Video
from pipeline.files import write_json
from train.build_network import build_network
from train.changes import measured_as
from train.checkpoint import AVERAGE, SETTINGS, WEIGHTS, load_weights, restate_measure
from train.detections import JSON_NAME, Results, read_detections, write_detections
from train.distributed import barrier, rank, world_size
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.class_thresholds import choose_thresholds
from train.evaluation.files import subset_metadata
from train.evaluation.proposals import without_classes
from train.inference import infer
from train.numerics import cast_parameters
from train.postprocess import postprocess_videos
from train.report.build import write_report
from train.run import Run
from train.settings import read_settings


def gather_detections(folder: Path, own: Results) -> dict[str, Any]:
    """The detections of all ranks, by way of files in the run folder, so that nothing is unpickled."""
    write_detections(folder / f"detections.rank{rank()}.json", own, metadata={})
    barrier()
    merged: dict[str, Any] = {}
    for number in range(world_size()):
        merged.update(read_detections(folder / f"detections.rank{number}.json").results)
    barrier()
    (folder / f"detections.rank{rank()}.json").unlink()
    return merged


def ground_truth_of(run: Run) -> dict[str, Video]:
    """The videos of the validation subset with what the detections are compared with."""
    videos = run.dataset.ground_truth(run.settings.data.val_subset)
    return without_classes(videos) if run.settings.post.proposals_only else videos


def _detections(run: Run, network: torch.nn.Module) -> tuple[dict[str, Video], dict[str, Any]]:
    """The ground truth of the validation subset, and what a network detects in it, on every rank."""
    own = postprocess_videos(
        infer(network, run.val_loader, masked=run.settings.data.pad_short_videos),
        run.dataset.classes,
        run.settings.post,
    )
    detections, ground_truth = gather_detections(run.folder, own), ground_truth_of(run)
    return ground_truth, {key: detections.get(key, []) for key in ground_truth}  # a rejected video has none


def validate(run: Run) -> dict[str, Any]:
    """Detect on the validation subset; writes detections.json, returns the metrics (same on every rank).

    With averaged weights, if the run has them.

    Rank 0 keeps the thresholds of the weights for their checkpoint.
    """
    settings, dataset = run.settings, run.dataset
    subset = settings.data.val_subset
    with run.average.swapped_in() if run.average is not None else nullcontext():
        ground_truth, results = _detections(run, run.engine)
    metrics = mean_average_precision(ground_truth, results, protocol=settings.run.protocol)
    if rank() == 0:
        run.thresholds = (run.progress.step, choose_thresholds(ground_truth, results, subset=subset))
        metadata = {"subset": subset, "step": run.progress.step, "protocol": settings.run.protocol}
        metadata |= subset_metadata(dataset, subset)
        write_detections(run.folder / JSON_NAME, results, metadata=metadata)
    return metrics


def validate_checkpoint(run: Run, folder: Path) -> float:
    """The average mAP of a checkpoint of the run, measured as the run's settings say now.

    Of the averaged weights, if the run has them. The checkpoint then states these settings, and has the
    thresholds of this validation. All ranks call it.
    """
    settings = read_settings(folder / SETTINGS, ["encoder.weights=null"])
    network = build_network(settings, len(run.dataset.classes)).to(run.device)
    load_weights(network, folder, WEIGHTS if run.average is None else AVERAGE)
    if run.precision == "bf16":
        cast_parameters(network, torch.bfloat16)
    ground_truth, results = _detections(run, network)
    if rank() == 0:
        now = measured_as(settings.model_dump(mode="json"), run.settings.model_dump(mode="json"))
        thresholds = choose_thresholds(ground_truth, results, subset=run.settings.data.val_subset)
        restate_measure(folder, settings=now, thresholds=thresholds)
    barrier()
    metrics = mean_average_precision(ground_truth, results, protocol=run.settings.run.protocol)
    return float(metrics["average_mAP"])


def update_report(run: Run) -> None:
    """Write report.html from what the run folder holds so far."""
    if rank() == 0:
        write_report(run.folder, ground_truth=ground_truth_of(run))


def write_metrics(run: Run) -> None:
    """Write metrics.json after the last step: the last evaluation, and the seconds the run took."""
    if rank() == 0:
        seconds = {name: round(value, 2) for name, value in run.progress.seconds.items()}
        write_json(run.folder / "metrics.json", {**run.progress.metrics, "seconds": seconds})
