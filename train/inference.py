"""Runs the network over a subset: raw windows, then detections video by video, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import torch

from model.detector.detector import Prediction
from pipeline.batch import Batch
from train.postprocess import PostSettings, RawWindow, detections_of


def raw_windows(prediction: Prediction, batch: Batch) -> Iterator[RawWindow]:
    """The batch's predictions as numpy, one RawWindow a sample; padded samples are left out."""
    num_steps = prediction.boundary.shape[-1]
    segments, quality, class_scores, boundary = (
        tensor.float().cpu().numpy()
        for tensor in (prediction.segments, prediction.quality, prediction.class_scores, prediction.boundary)
    )
    for i, key in enumerate(batch.keys):
        if not batch.padding[i]:
            yield RawWindow(
                key=key,
                window=(float(batch.windows[i, 0]), float(batch.windows[i, 1])),
                duration=float(batch.durations[i]),
                num_steps=num_steps,
                segments=segments[i],
                quality=quality[i],
                class_scores=class_scores[i],
                boundary=boundary[i],
            )


def infer(network: torch.nn.Module, batches: Iterable[Batch]) -> Iterator[RawWindow]:
    """Raw windows of every sample, in the loader's order. `network`: a Network, or the engine around one.

    Raises ValueError naming the videos if a score is not finite.
    """
    network.eval()
    for batch in batches:
        with torch.no_grad():
            prediction = network(batch.clips)
        if not torch.isfinite(prediction.class_scores).all() or not torch.isfinite(prediction.segments).all():
            raise ValueError(
                f"predictions for {', '.join(batch.keys)} are not finite: the weights have diverged; "
                "use an earlier checkpoint or lower the learning rates"
            )
        yield from raw_windows(prediction, batch)


def detect(
    windows: Iterable[RawWindow],
    classes: Sequence[str],
    settings: PostSettings,
    *,
    external_scores: dict | None = None,
    keep: Callable[[RawWindow], None] | None = None,
) -> dict[str, list[dict]]:
    """Detections of every video, in seconds. Windows of one video must follow one another.

    keep: called with every raw window on its way, for writing them to a file.
    """
    results: dict[str, list[dict]] = {}
    for key, group in groupby(windows, key=lambda window: window.key):
        assert key not in results, f"windows of {key} are not together"
        of_video = list(group)
        for window in of_video:
            if keep is not None:
                keep(window)
        results[key] = detections_of(of_video, classes, settings, external_scores=external_scores)
    return results
