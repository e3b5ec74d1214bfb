"""Class scores of a pretrained classifier over time: what a network knows before it is trained here.

I3D as its authors run it: 25 frames a second (or as many as the video has, if fewer), a short side of 256
pixels, 224 in the middle, clips of 64 frames one after another; a clip's features are averaged over space
and neighbouring steps, then classified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbones import build_backbone
from model.backbones.backbone import Backbone
from pipeline.batch import Batch
from pipeline.loader import Loader
from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import SUBSET, SingleVideo
from pipeline.packing.transcode import EncodingSpec
from pipeline.records import PackedVideo
from pipeline.settings import DataSettings
from tools.weights.files import read_tensors
from tools.weights.matching import match_weights, sources_of
from tools.weights.names.i3d import classifier_of
from train.cli import to_stderr

FPS, SHORT_SIDE, CROP = 25, 256, 224
LEAST_FRAMES = 8  # of a clip: one feature step
ENCODING = EncodingSpec(codec="h264", fps=Fraction(FPS), short_side=SHORT_SIDE, gop=32, upscale=False)
BATCH = 2  # clips at once


@dataclass(frozen=True)
class ClassScores:
    """Probabilities (K,) of a stretch of a video, start and end in seconds."""

    start: float
    end: float
    probabilities: Tensor


@dataclass(frozen=True)
class Classifier:
    """A pretrained backbone and its classifier, weight (K, D) and bias (K,), in evaluation mode."""

    backbone: Backbone
    weight: Tensor
    bias: Tensor
    labels: Sequence[str]
    device: torch.device

    def probabilities(self, clips: Tensor) -> Tensor:
        """clips: (n, 3, L, H, W) uint8. Returns (n, K), rows with a sum of 1."""
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1, 1) * 255
            for values in (self.backbone.mean, self.backbone.std)
        )
        with torch.no_grad():
            y = self.backbone.pool(self.backbone((clips.to(self.device).float() - mean) / std))  # (n, D, t)
            steps = F.avg_pool1d(y, 2, 1) if y.shape[2] > 1 else y
            return F.linear(steps.mean(2), self.weight, self.bias).softmax(1).cpu()


def load_classifier(path: Path, labels: Path | None, device: torch.device) -> Classifier:
    """I3D with its classifier from a published file. labels: a text file, a name a line; None: numbers.

    Raises ValueError if the file is not all of I3D, has no classifier, or another number of classes than
    there are labels.
    """
    weights = read_tensors(path)
    found = (match_weights(weights, "i3d", source) for source in sources_of("i3d"))
    matched = max((one for one in found if one is not None), key=lambda one: one.share, default=None)
    if matched is None or matched.share < 1:
        raise ValueError(f"{path}: not I3D's weights, as TensorFlow, JAX or PyTorch have them")
    try:
        weight, bias = classifier_of(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    backbone = build_backbone("i3d").eval()
    backbone.load_state_dict(matched.tensors)
    return Classifier(
        backbone.to(device), weight.to(device), bias.to(device), read_labels(labels, len(bias)), device
    )


def read_labels(path: Path | None, count: int) -> list[str]:
    """The names of `count` classes, a line each; without a file "class 0" and so on."""
    if path is None:
        return [f"class {number}" for number in range(count)]
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    labels = [line for line in lines if line]
    if len(labels) != count:
        raise ValueError(
            f"{path}: got {len(labels)} names, want {count}, one a line in the classifier's order"
        )
    return labels


def settings_for(video: PackedVideo, clip_frames: int) -> DataSettings:
    """One clip a window, windows one after another; a video shorter than a clip is one clip of its frames."""
    length = max(LEAST_FRAMES, min(clip_frames, video.num_frames))
    return DataSettings(
        shards="",
        num_clips=1,
        clip_frames=length,
        resize=SHORT_SIDE,
        crop=CROP,
        window_seconds=length / video.fps,
        window_overlap=0.0,
        skip_bad=0,
    )


def classify(
    classifier: Classifier,
    video: PackedVideo,
    packed: Path,
    *,
    clip_frames: int,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]],
) -> Iterator[ClassScores]:
    """The scores of a video's clips, in order of time. packed: the file as it was encoded.

    watch: wraps the iteration over batches, for a progress bar. Raises ValueError if it cannot be read.
    """
    loader = Loader(
        SingleVideo(video, PackedFile(packed, video.num_frames), ()),
        settings_for(video, clip_frames),
        subset=SUBSET,
        batch_size=BATCH,
        seed=0,
        rank=0,
        world_size=1,
        device=classifier.device,
        training=False,
        remark=to_stderr,
    )
    with closing(loader):
        for batch in watch(loader):
            rows = classifier.probabilities(batch.inputs[:, 0])
            for (start, end), row, is_padding in zip(
                batch.windows.tolist(), rows, batch.padding, strict=True
            ):
                if not is_padding:
                    yield ClassScores(start, end, row)
