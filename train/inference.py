"""Runs a trained network over videos: raw windows, then detections video by video.

Evaluation and prediction both use `load_trained` and `detect_in`; validation within a run shares `infer` and
the post-processing with them. So all three see the same pixels and give the same numbers. Of a video, only
the best candidates of each window are kept until its last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.detector.detector import Prediction
from model.feature_network import FeatureNetwork
from model.network import Network
from model.partitioned import is_partitioned
from pipeline.batch import Batch
from pipeline.features.records import FeatureSource
from pipeline.limits import set_limits
from pipeline.loader import Loader
from pipeline.records import VideoSource
from train.build_network import build_network, resolve_device
from train.checkpoint import (
    AVERAGE,
    PACKING,
    WEIGHTS,
    load_weights,
    read_classes,
    read_packing,
    settings_file,
)
from train.cli import to_stderr
from train.distributed import device_of_rank
from train.evaluation.class_thresholds import THRESHOLDS, ClassThresholds, read_thresholds
from train.gpu_memory import spare_memory
from train.model_file import check_tensors, read_model_file
from train.numerics import cast_parameters, has_bf16, set_numerics
from train.postprocess import ExternalScores, RawWindow, postprocess_videos
from train.settings import Settings, read_settings
from train.shared_clips import SharedClips

Watch = Callable[[Iterable[RawWindow]], Iterable[RawWindow]]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights, on its device, and the settings and classes of its checkpoint.

    source: the checkpoint folder, or the model file. packing: how the data set was packed that the weights
    were trained on; None where an older release did not keep it. thresholds: those of each class that the
    validation chose; None where there was none, or nothing was right. overrides: key=value, on top of the
    checkpoint's own settings.
    """

    source: Path
    settings: Settings
    classes: tuple[str, ...]
    packing: Mapping[str, Any] | None
    thresholds: ClassThresholds | None
    network: Network | FeatureNetwork
    device: torch.device
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint folder or a model file holds; `load` copies its weights into a network."""

    source: Path
    settings: Settings
    classes: tuple[str, ...]
    packing: Mapping[str, Any] | None
    thresholds: ClassThresholds | None
    load: Callable[[Network | FeatureNetwork], None]


def _read_folder(checkpoint: Path, overrides: Iterable[str]) -> _Saved:
    path = settings_file(checkpoint)
    folder = path.parent
    # The checkpoint holds the encoder too: the file it was once initialised from need not be here.
    settings = read_settings(path, ["encoder.weights=null", *overrides])
    packing = read_packing(folder) if (folder / PACKING).is_file() else None
    thresholds = read_thresholds(folder) if (folder / THRESHOLDS).is_file() else None
    classes = tuple(read_classes(folder))
    name = AVERAGE if settings.optimizer.ema_decay else WEIGHTS
    if name == AVERAGE:
        to_stderr(f"{folder}: averaged weights; --set optimizer.ema_decay=0 uses those of its last step")
    load = partial(load_weights, folder=folder, name=name)
    return _Saved(folder, settings, classes, packing, thresholds, load)


def _read_file(path: Path, overrides: Iterable[str]) -> _Saved:
    model = read_model_file(path)
    settings = model.settings_with(overrides)
    if settings.optimizer.ema_decay != model.settings.optimizer.ema_decay:
        raise ValueError(
            f"{path}: holds one set of weights, and optimizer.ema_decay chooses between two; leave it out, "
            "or use the run's checkpoint"
        )

    def load(network: Network | FeatureNetwork) -> None:
        check_tensors(network, model.tensors, where=path)
        network.load_state_dict(model.tensors)

    return _Saved(path, settings, model.classes, model.packing, model.thresholds, load)


def load_trained(checkpoint: Path, overrides: Iterable[str] = ()) -> TrainedNetwork:
    """The network of a run folder, checkpoint folder or model file; `overrides`: key=value on top of its own.

    Raises ValueError, one line, for a folder without a checkpoint, damaged files, unknown settings.
    """
    overrides = tuple(overrides)
    saved = (_read_file if checkpoint.is_file() else _read_folder)(checkpoint, overrides)
    source, settings = saved.source, saved.settings
    set_limits(settings.data.limits)
    device = resolve_device(settings.run.device)
    spare_memory(device)
    device = device_of_rank(device)
    set_numerics(settings.run, device)
    network = build_network(settings, len(saved.classes)).to(device)
    saved.load(network)
    if settings.run.precision == "bf16":  # as the run trained and validated
        if has_bf16(device):
            cast_parameters(network, torch.bfloat16)
        else:
            to_stderr(f"run.precision: bf16 in {source}, which a {device.type} lacks; computing in float32")
    stated = (saved.classes, saved.packing, saved.thresholds)
    return TrainedNetwork(source, settings, *stated, network, device, overrides)


def raw_windows(prediction: Prediction, batch: Batch) -> Iterator[RawWindow]:
    """The batch's predictions as numpy, one RawWindow a sample; padded samples are left out.

    A window that its video fills in part ends with the last step that the video reaches.
    """
    whole = prediction.boundary.shape[-1]
    steps = prediction.num_steps or (whole,) * len(batch)
    counts = None if prediction.counts is None else prediction.counts.cpu().numpy()
    segments, quality, class_scores, boundary = (
        tensor.float().cpu().numpy()
        for tensor in (prediction.segments, prediction.quality, prediction.class_scores, prediction.boundary)
    )
    for i, key in enumerate(batch.keys):
        if not batch.padding[i]:
            start, end = batch.windows[i].tolist()
            rows = slice(None) if counts is None else counts[i]
            yield RawWindow(
                key=key,
                window=(start, end if steps[i] == whole else start + (end - start) * steps[i] / whole),
                duration=float(batch.durations[i]),
                num_steps=steps[i],
                segments=segments[i][rows].clip(max=steps[i]),
                quality=quality[i][rows],
                class_scores=class_scores[i][rows],
                boundary=boundary[i][:, : steps[i]],
            )


def _predict_of(network: torch.nn.Module) -> Callable[[Batch, torch.Tensor | None], Prediction]:
    """Predicts for batches that follow each other, with masked windows if shares are given."""
    module = getattr(network, "module", network)  # of an engine
    shared = SharedClips(module) if isinstance(module, Network) and not is_partitioned(module) else None

    def predict(batch: Batch, shares: torch.Tensor | None) -> Prediction:
        if shared is None or batch.frames is None:  # ZeRO-3 gathers parameters in the engine's forward alone
            prediction: Prediction = network(batch.inputs, video_shares=shares)
            return prediction
        return shared.network.detector.detect(shared.features(batch), shares)

    return predict


def infer(network: torch.nn.Module, batches: Iterable[Batch], *, masked: bool = False) -> Iterator[RawWindow]:
    """Raw windows of every sample, in the loader's order. `network`: a Network, or its engine.

    masked: hide from the detector what of a window lies behind its video's end (data.pad_short_videos).

    Raises ValueError naming the videos if a score is not finite.
    """
    network.eval()
    predict = _predict_of(network)
    for batch in batches:
        with torch.no_grad():
            prediction = predict(batch, batch.video_shares if masked else None)
        if not torch.isfinite(prediction.class_scores).all() or not torch.isfinite(prediction.segments).all():
            raise ValueError(
                f"predictions for {', '.join(batch.keys)} are not finite: the weights have diverged; "
                "use an earlier checkpoint or lower the learning rates"
            )
        yield from raw_windows(prediction, batch)
        del batch, prediction  # or they would be held while the next batch is waited for


def _recorded(windows: Iterable[RawWindow], record: Callable[[RawWindow], None]) -> Iterator[RawWindow]:
    for window in windows:
        record(window)
        yield window


def evaluation_loader(
    trained: TrainedNetwork,
    videos: VideoSource | FeatureSource,
    *,
    subset: str,
    batch_size: int,
    remark: Callable[[str], None],
) -> Loader:
    """The windows of a subset as the network sees them in evaluation, each once; see `detect_in`."""
    return Loader(
        videos,
        trained.settings.data,
        subset=subset,
        batch_size=batch_size,
        seed=trained.settings.seed,
        rank=0,
        world_size=1,
        device=trained.device,
        training=False,
        remark=remark,
    )


def detect_in(
    trained: TrainedNetwork,
    videos: VideoSource | FeatureSource,
    *,
    subset: str,
    batch_size: int,
    watch: Watch = iter,
    external_scores: ExternalScores | None = None,
    record: Callable[[RawWindow], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Detections of every packed video of a subset, in seconds, best first.

    batch_size: windows that go through the network at once. watch: wraps the iteration over windows, for a
    progress bar. record: called with every raw window, for writing them to a file. Raises ValueError naming
    the video that cannot be read.
    """
    with closing(
        evaluation_loader(trained, videos, subset=subset, batch_size=batch_size, remark=to_stderr)
    ) as loader:
        return detect_in_batches(trained, loader, watch=watch, external_scores=external_scores, record=record)


def detect_in_batches(
    trained: TrainedNetwork,
    batches: Iterable[Batch],
    *,
    watch: Watch = iter,
    external_scores: ExternalScores | None = None,
    record: Callable[[RawWindow], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Detections of every video of a loader's batches; as `detect_in`."""
    settings = trained.settings
    windows = watch(infer(trained.network, batches, masked=settings.data.pad_short_videos))
    if record is not None:
        windows = _recorded(windows, record)
    return postprocess_videos(windows, trained.classes, settings.post, external_scores=external_scores)
