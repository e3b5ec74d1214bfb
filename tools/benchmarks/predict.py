"""How many seconds of video predict gets through in a second: whole, by part, and beside a plain loop."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from model.network import Network
from model.segments import pairwise_tiou
from pipeline.loader import Loader
from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import SUBSET, SingleVideo, prepare
from pipeline.packing.transcode import EncodingSpec
from pipeline.records import PackedVideo
from pipeline.temporary_folder import temporary_folder
from tools.benchmarks.common import cpu_clock
from tools.benchmarks.plain_loop import plain_batches
from tools.prediction.detect import detect_in_files, encoding_spec, processes_at_once
from train.cli import Output
from train.detections import Selection
from train.inference import TrainedNetwork, evaluation_loader, infer
from train.postprocess import postprocess_videos
from train.shared_clips import ClipName, names_of_clips

COMPARED = 10  # detections of a video, the best of predict, that are looked for among the plain loop's
WHOLE, PLAIN = "predict", "plain loop"
Value = TypeVar("Value")
Detections = dict[str, list[dict[str, Any]]]  # by video, best first


@dataclass(frozen=True)
class PredictRow:
    """What a part took for all videos; cpu_seconds: of all processes, times_plain: speed over the loop's."""

    part: str
    seconds: float
    cpu_seconds: float
    video_seconds_per_second: float
    times_plain: float | None = None


@dataclass(frozen=True)
class Measured:
    """The rows, and with which mean tIoU (0 to 1) the plain loop finds predict's best detections again."""

    rows: list[PredictRow]
    video_seconds: float
    agreement: float


class Clock:
    """Least seconds of each part, of this process and of those that it waited for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.least: dict[str, tuple[float, float]] = {}

    def time(self, part: str, function: Callable[[], Value], *, times: float = 1) -> Value:
        """Call the function and note what it took, `times` as often as it did: the least of several calls."""
        begun = self._now()
        value = function()
        wall, cpu = (times * (end - start) for start, end in zip(begun, self._now(), strict=True))
        known = self.least.get(part, (float("inf"), float("inf")))
        self.least[part] = min(known[0], wall), min(known[1], cpu)
        return value

    def add(self, other: Clock) -> None:
        """Add what another clock noted, part by part: of the next video."""
        for part, spent in other.least.items():
            known = self.least.get(part, (0.0, 0.0))
            self.least[part] = known[0] + spent[0], known[1] + spent[1]

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), cpu_clock()


def measure(trained: TrainedNetwork, files: Mapping[str, Path], *, repeats: int) -> Measured:
    """Detect in the files with predict and with the plain loop, in turns, then with each part of predict.

    The least of `repeats` turns counts. ValueError for a file that cannot be used, and for a detector of
    features.
    """
    network = trained.network
    if not isinstance(network, Network):
        raise ValueError(f"{trained.source}: was trained on features: it decodes and encodes nothing")
    spec = encoding_spec(trained)
    clock, fps = Clock(trained.device), spec.fps if spec else Fraction(0)
    for _ in range(repeats):
        ours = clock.time(WHOLE, lambda: _detections(trained, files))
        plain = clock.time(PLAIN, lambda: _plain_detections(trained, files, fps))
    with temporary_folder() as folder:
        videos: list[tuple[PackedVideo, Path]] = []
        for _ in range(repeats):
            videos = clock.time("re-encode", lambda: _prepared(files, spec, folder))
        for video, packed in videos:
            clock.add(_parts(trained, network, video, packed, repeats=repeats))
    seconds = sum(video.duration or 0.0 for video, _ in videos)
    rows = [
        PredictRow(
            part=part,
            seconds=round(wall, 4),
            cpu_seconds=round(cpu, 4),
            video_seconds_per_second=round(seconds / wall, 3),
            times_plain=round(clock.least[PLAIN][0] / wall, 3) if part in (WHOLE, PLAIN) else None,
        )
        for part, (wall, cpu) in clock.least.items()
    ]
    return Measured(rows, round(seconds, 3), round(agreement(ours, plain), 4))


def _detections(trained: TrainedNetwork, files: Mapping[str, Path]) -> Detections:
    """As `leantad predict` finds them. ValueError for a file that cannot be used."""
    found = detect_in_files(trained, dict(files), Selection(), output=Output(quiet=True))
    for video in found:
        if video.reason is not None:
            raise ValueError(f"{video.file}: {video.reason}")
    return {video.key: list(video.detections) for video in found}


def _plain_detections(trained: TrainedNetwork, files: Mapping[str, Path], fps: Fraction) -> Detections:
    found: Detections = {}
    settings = trained.settings
    for key, file in files.items():
        batches = plain_batches(file, key, settings.data, fps=fps)
        windows = infer(trained.network, batches, masked=settings.data.pad_short_videos)
        found.update(postprocess_videos(windows, trained.classes, settings.post))
    return found


def _prepared(
    files: Mapping[str, Path], spec: EncodingSpec | None, folder: Path
) -> list[tuple[PackedVideo, Path]]:
    """The videos as predict encodes them, kept in the folder."""
    kept = []
    with closing(prepare(files, spec, workers=processes_at_once())) as prepared:
        for number, (video, packed) in enumerate(prepared):
            shutil.copyfile(packed, folder / str(number))
            kept.append((video, folder / str(number)))
    return kept


def _loader(trained: TrainedNetwork, video: PackedVideo, packed: Path) -> Loader:
    """The windows of a video as predict reads them, one at a time."""
    source = SingleVideo(video, PackedFile(packed, video.num_frames), trained.classes)
    # its lines are left out: predict has said them
    return evaluation_loader(trained, source, subset=SUBSET, batch_size=1, remark=lambda text: None)


def _parts(
    trained: TrainedNetwork, network: Network, video: PackedVideo, packed: Path, *, repeats: int
) -> Clock:
    """Decoding, encoder, detector and post-processing of one video, each alone.

    The network's parts are timed on the first window: what one takes does not depend on what it shows. Of
    clips that several windows show, the encoder takes one.
    """
    settings, clock = trained.settings, Clock(trained.device)
    loader = partial(_loader, trained, video, packed)

    def decode() -> list[ClipName]:
        with closing(loader()) as batches:
            return [name for batch in batches for name in names_of_clips(batch)]

    def detect(features: torch.Tensor) -> object:
        return network.detector.detect(
            features, first.video_shares if settings.data.pad_short_videos else None
        )

    with closing(loader()) as batches:
        windows = list(infer(network, batches, masked=settings.data.pad_short_videos))
    with closing(loader()) as batches:
        first = next(iter(batches))
    for _ in range(repeats):
        names = clock.time("decode", decode)
        count, share = len(names) / settings.data.num_clips, len(set(names)) / len(names)
        with torch.no_grad():
            encode = partial(network.encode, first.inputs, kept=None)
            features = clock.time("encoder", encode, times=count * share)
            clock.time("detector", partial(detect, features), times=count)
        clock.time("post-process", lambda: postprocess_videos(windows, trained.classes, settings.post))
    return clock


def agreement(ours: Detections, plain: Detections) -> float:
    """Mean over our best detections of their best tIoU with one of the plain loop's of that label, 0 to 1."""
    found: list[float] = []
    for key, detections in ours.items():
        for detection in detections[:COMPARED]:
            same = [other["segment"] for other in plain[key] if other["label"] == detection["label"]]
            if not same:
                found.append(0.0)
                continue
            one = torch.tensor([detection["segment"]], dtype=torch.float64)
            found.append(float(pairwise_tiou(one, torch.tensor(same, dtype=torch.float64)).max()))
    return sum(found) / len(found) if found else 1.0
