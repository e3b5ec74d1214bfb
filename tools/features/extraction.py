"""Encodes videos as a frozen run would: the same clips, at the same times, by the same weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.backbones.named import NamedBackbone
from model.network import Network
from pipeline.features.records import MADE_BY, PRECISION, FeatureVideo
from pipeline.features.writer import Precision
from pipeline.packing.prepare import ENCODING_FIELDS
from pipeline.prefetch import Prefetch
from pipeline.reader import PendingSample
from pipeline.records import PackedVideo, VideoSource
from pipeline.sample_reader import SampleReader
from pipeline.samples import Sample
from pipeline.settings import DataSettings
from train.build_network import build_network, resolve_device
from train.cli import to_stderr
from train.inference import TrainedNetwork, load_trained
from train.numerics import set_numerics
from train.settings import Settings, load_settings


@dataclass(frozen=True)
class ClipGrid:
    """The clips of a whole video, one every `step` seconds from its beginning on, in windows.

    count: of clips; those of the last window may be more, which see the video's last frame.
    """

    windows: tuple[tuple[float, float], ...]
    step: float
    count: int


def clip_grid(duration: float, data: DataSettings, steps_per_clip: int | None) -> ClipGrid:
    """The clips that the windows of a run see, each once: of half overlapping windows, half of each window.

    A video that is one window has data.num_clips clips, whatever its length, unless it is padded. duration:
    seconds. steps_per_clip: features of a clip; None: as many as the backbone gives, a frame's at most.
    """
    length = data.window_seconds
    if length is None or (duration <= length and not data.pad_short_videos):
        return ClipGrid(((0.0, duration),), duration / data.num_clips, data.num_clips)
    step = length / data.num_clips
    first = 0.5 / (steps_per_clip or data.clip_frames)  # the middle of a clip's first feature, in clips
    count = max(1, math.floor(duration / step - first) + 1)  # those whose first feature lies in the video
    windows = tuple((k * length, (k + 1) * length) for k in range(math.ceil(count / data.num_clips)))
    return ClipGrid(windows, step, count)


@dataclass(frozen=True)
class FeatureEncoder:
    """An encoder with its weights, on its device, and the settings that decide its features."""

    settings: Settings
    network: Network
    device: torch.device
    trained: TrainedNetwork | None = None  # the run that it is of, if it is

    @cached_property
    def weights_sha256(self) -> str:
        """Of the encoder's tensors, whichever file they came in."""
        return tensors_sha256(self.network.encoder)

    def clips_of(self, video: PackedVideo) -> ClipGrid:
        """The clips of a video that it encodes."""
        return clip_grid(video.duration or 0.0, self.settings.data, self.settings.encoder.steps_per_clip)

    def made_with(self, packing: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
        """The "settings" of a feature file; packing: those of the data set."""
        data, encoder = self.settings.data, self.settings.encoder
        resize = data.resize if isinstance(data.resize, int) else "x".join(map(str, data.resize))
        beta = encoder.beta_of_run.end if encoder.reversible else 0.0  # 0: the network as it was pretrained
        decisive: dict[str, Any] = {
            "backbone": encoder.backbone,
            "weights_sha256": self.weights_sha256,
            "num_clips": data.num_clips,
            "clip_frames": data.clip_frames,
            "stride_frames": data.stride_frames or 0,  # 0: over the whole window
            "resize": resize,
            "crop": data.crop,
            "window_seconds": data.window_seconds or 0,  # 0: the whole video
            "steps_per_clip": encoder.steps_per_clip or 0,  # 0: all that the backbone gives
            "beta": beta,
            "leapfrog": encoder.leapfrog and beta > 0,
        }
        backbone = self.network.encoder.backbone
        if isinstance(backbone, NamedBackbone) and backbone.described.frames is None:
            decisive["temporal"] = encoder.temporal
        packed = {name: packing[name] for name in ("copy", *ENCODING_FIELDS) if name in packing}
        return {MADE_BY: "extract-features", PRECISION: precision, **decisive, **packed}


def tensors_sha256(module: nn.Module) -> str:
    """The sha256 of a module's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_of_run(checkpoint: Path, overrides: Sequence[str]) -> FeatureEncoder:
    """The encoder of a run, checkpoint or model file; ValueError if it has none."""
    trained = load_trained(checkpoint, ["run.precision=float32", *overrides])
    if not isinstance(trained.network, Network):
        raise ValueError(f"{checkpoint}: was trained on features and has no encoder; want a run on videos")
    return FeatureEncoder(trained.settings, trained.network.eval(), trained.device, trained)


def encoder_of_recipe(recipe: Path, overrides: Sequence[str], *, trust: bool) -> FeatureEncoder:
    """The pretrained encoder of a recipe, as its weights are: not made reversible; ValueError without any."""
    settings = load_settings(recipe, ["encoder.reversible=false", *overrides], trust=trust)
    if settings.data.num_features is not None:
        raise ValueError(f"{recipe}: trains on features and has no encoder; want a recipe of videos")
    if settings.encoder.weights is None:
        raise ValueError(
            f"{recipe}: encoder.weights: missing, features of random weights say nothing; name the weights "
            "with --set encoder.weights=FILE, or a trained run with --checkpoint"
        )
    device = resolve_device(settings.run.device)
    set_numerics(settings.run, device)
    network = build_network(settings, 1)
    assert isinstance(network, Network)
    return FeatureEncoder(settings, network.to(device).eval(), device)


class VideoEncoder:
    """Encodes videos of a source, decoding the next window while one is encoded."""

    def __init__(self, encoder: FeatureEncoder, source: VideoSource, videos: Sequence[PackedVideo]):
        self.encoder, self.source, self.videos = encoder, source, videos
        self.grids = {video.key: encoder.clips_of(video) for video in videos}

    def features(self) -> Iterator[tuple[FeatureVideo, NDArray[np.float32]]]:
        """Each video, in order, with its features (T, D). Raises ValueError naming what cannot be read."""
        samples = [Sample(video, window) for video in self.videos for window in self.grids[video.key].windows]
        parts: list[NDArray[np.float32]] = []
        for sample, clips in self._decoded(samples):
            assert isinstance(sample.video, PackedVideo)
            grid = self.grids[sample.video.key]
            left = grid.count - len(parts) * len(clips)
            parts.append(self._encoded(clips[:left]))
            if len(parts) == len(grid.windows):
                features = np.concatenate(parts)
                parts = []
                yield entry_of(sample.video, grid, len(features)), features

    def _encoded(self, clips: torch.Tensor) -> NDArray[np.float32]:
        """Clips (N, C, L, H, W) -> (N * t, D)."""
        with torch.no_grad():
            features = self.encoder.network.encode(clips[None], kept=None)[0]
        return np.asarray(features.T.float().cpu().numpy())

    def _decoded(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, torch.Tensor]]:
        """Samples with their clips, one decoded ahead."""
        settings, device = self.encoder.settings, self.encoder.device
        data = settings.data.model_copy(update={"skip_bad": 0, "shuffle_frames": False})
        reader = SampleReader(
            self.source, samples, data, seed=settings.seed, training=False, device=device, remark=to_stderr
        )

        def begin(index: int) -> tuple[torch.Tensor, PendingSample | None]:
            torch.set_num_threads(1)  # of the thread that decodes ahead
            room = reader.empty(1, pin_memory=device.type == "cuda")[0]
            return room, reader.start(index, 0, room)

        def complete(begun: tuple[torch.Tensor, PendingSample | None]) -> torch.Tensor:
            room, pending = begun
            assert pending is not None, "nothing is skipped"
            reader.complete(pending)
            return room

        torch.get_num_threads()  # settles this thread's own number, as in the Loader
        ahead = Prefetch(iter(range(len(samples))), begin, complete, 1)
        with closing(reader), closing(ahead):
            for index, clips in ahead:
                yield samples[index], clips


def entry_of(video: PackedVideo, grid: ClipGrid, num_steps: int) -> FeatureVideo:
    """What a feature file states of a video whose clips became so many features."""
    step = grid.step * grid.count / num_steps
    return replace(rejected_entry(video), num_steps=num_steps, first=step / 2, step=step, reject=None)


def rejected_entry(video: PackedVideo) -> FeatureVideo:
    """What a feature file states of a video that has no features."""
    return FeatureVideo(
        key=video.key,
        subset=video.subset,
        duration=video.duration,
        num_steps=0,
        first=0.0,
        step=0.0,
        actions=video.actions,
        source=video.source,
        reject=video.reject or "not extracted",
        file=video.file,
    )
