"""Runs a trained network over videos: raw windows, then detections video by video.

Evaluation and prediction both come through `load_trained` and `detect_in`; training's validation joins them
at `infer`. So all three see the same pixels and give the same numbers. Of a video, only the best candidates
of each window are kept until its last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from model.detector.detector import Prediction
from model.network import Network
from pipeline.batch import Batch
from pipeline.loader import Loader
from pipeline.records import VideoSource
from train.build_network import build_network, resolve_device
from train.checkpoint import SETTINGS, load_weights, read_classes, weights_folder
from train.cli import to_stderr
from train.postprocess import ExternalScores, PostSettings, RawWindow, detections_of
from train.settings import Settings, read_settings

Watch = Callable[[Iterable[RawWindow]], Iterable[RawWindow]]


@dataclass(frozen=True)
class Trained:
    """A network with its weights on its device, and what a checkpoint says about it."""

    folder: Path
    settings: Settings
    classes: tuple[str, ...]
    network: Network
    device: torch.device


def load_trained(checkpoint: Path, overrides: Iterable[str] = ()) -> Trained:
    """The network of a checkpoint or run folder; `overrides` (key=value) on top of the settings it has.

    Raises ValueError, one line, for a folder that is none, damaged files, unknown settings.
    """
    folder = weights_folder(checkpoint)
    # The checkpoint holds the encoder too: the file it was once initialised from need not be here.
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder / SETTINGS}: no such file; want a folder that a run wrote whole")
    settings = read_settings(folder / SETTINGS, ["encoder.weights=null", *overrides])
    classes = tuple(read_classes(folder))
    device = resolve_device(settings.run.device)
    network = build_network(settings, len(classes)).to(device)
    load_weights(network, folder)
    return Trained(folder, settings, classes, network, device)


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
    external_scores: ExternalScores | None = None,
    keep: Callable[[RawWindow], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Detections of every video, in seconds. Windows of one video must follow one another.

    keep: called with every raw window on its way, for writing them to a file.
    """
    if keep is not None:
        windows = _each(windows, keep)
    results: dict[str, list[dict[str, Any]]] = {}
    for key, group in groupby(windows, key=lambda window: window.key):
        assert key not in results, f"windows of {key} are not together"
        results[key] = detections_of(group, classes, settings, external_scores=external_scores)
    return results


def _each(windows: Iterable[RawWindow], keep: Callable[[RawWindow], None]) -> Iterator[RawWindow]:
    for window in windows:
        keep(window)
        yield window


def detect_in(
    trained: Trained,
    videos: VideoSource,
    *,
    subset: str,
    batch_size: int,
    watch: Watch = iter,
    external_scores: ExternalScores | None = None,
    keep: Callable[[RawWindow], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Detections of every packed video of a subset, in seconds, best first.

    batch_size: windows that go through the network at once. watch: wraps the iteration over windows, for a
    progress bar. keep: as in `detect`. Raises ValueError naming the video that cannot be read.
    """
    settings = trained.settings
    loader = Loader(
        videos,
        settings.data,
        subset=subset,
        batch_size=batch_size,
        seed=settings.seed,
        rank=0,
        world_size=1,
        device=trained.device,
        training=False,
        remark=to_stderr,
    )
    with closing(loader):
        windows = watch(infer(trained.network, loader))
        return detect(windows, trained.classes, settings.post, external_scores=external_scores, keep=keep)
