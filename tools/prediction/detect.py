"""Detects in files one by one: each is encoded as the training data was, and seen as evaluation sees it.

While the network is busy with the last window of a file, the first of the next is decoded. Memory holds the
clips of two windows and the proposals of those before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.annotations import Repair
from pipeline.packing.prepare import encoding_spec_of, prepare, stated_seconds
from pipeline.packing.transcode import EncodingSpec
from pipeline.text import first_names, shown
from tools.prediction.features import check_kind, predict_features
from tools.prediction.opened import OpenedVideo, in_turn, reason_of
from train.cli import Output, to_stderr
from train.compact_detections import CompactDetections
from train.detections import PROPOSAL, Selection, VideoDetections

if TYPE_CHECKING:
    from train.inference import TrainedNetwork
    from train.postprocess import RawWindow

MAX_WORKERS = 4  # files that are re-encoded at once: each worker holds some frames at source size
BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s of video [{elapsed}<{remaining}]"


class SecondsBar:
    """A progress bar that counts seconds of video, of all files together."""

    def __init__(self, stated: dict[str, float], *, no_bar: bool | None):
        tqdm.monitor_interval = 0  # its thread would disturb forking
        self.stated, self.total, self.done = stated, sum(stated.values()), 0.0
        self.bar = tqdm(total=round(self.total), bar_format=BAR, disable=no_bar)
        self.bar.set_description("preparing")

    def begin(self, key: str, duration: float) -> None:
        """A video is ready: from now on its real duration (seconds) counts, not the one its header states."""
        self.total += duration - self.stated[key]
        self.bar.total = round(self.total)
        self.bar.set_description(shown(key))

    def watch(self, windows: Iterable[RawWindow]) -> Iterator[RawWindow]:
        """The windows of one video, counted as they are yielded."""
        before = self.done
        for window in windows:
            self.done = before + min(window.window[1], window.duration)
            self.bar.update(round(self.done) - self.bar.n)
            yield window
        self.bar.set_description("preparing")


def encoding_spec(trained: TrainedNetwork) -> EncodingSpec | None:
    """How the videos were encoded that the weights were trained on; None: their bytes were kept."""
    from train.checkpoint import PACKING, read_packing

    # Without one, reading it is the error that says what to do.
    packing = read_packing(trained.source) if trained.packing is None else trained.packing
    try:
        return encoding_spec_of(packing)
    except ValueError as error:
        raise ValueError(f"{trained.source / PACKING}: {error}") from None


def predict(trained: TrainedNetwork, files: dict[str, Path], *, output: Output) -> Iterator[VideoDetections]:
    """Detect in files, by key, one after another; yields the detections in each, in order.

    A file that cannot be used has a reason in what is yielded, and is named on stderr unless it is the only
    one. ValueError when the checkpoint does not say how its data was packed.
    """
    from train.distributed import world_size

    if trained.settings.data.num_features is not None:
        yield from predict_features(trained, files, output=output)
        return
    is_only_one = len(files) == 1 and world_size() == 1  # whose reason the caller gives
    spec, remark = encoding_spec(trained), cache(to_stderr)  # each line once, not for each file
    bar = SecondsBar({key: stated_seconds(path) for key, path in files.items()}, no_bar=output.no_bar)

    def on_remark(key: str, found: Repair) -> None:
        remark(f"{files[key]}: {found.detail}")

    workers = processes_at_once()
    with closing(bar.bar), closing(prepare(files, spec, workers=workers, on_remark=on_remark)) as prepared:
        for opened in in_turn(trained, prepared, remark=remark):
            key = opened.video.key
            bar.begin(key, opened.video.duration or 0.0)
            found = detect_in_opened(trained, opened, file=files[key], bar=bar)
            if found.reason is not None and not is_only_one:
                output.error(f"{found.file}: {found.reason}")
            yield found


def detect_in_opened(
    trained: TrainedNetwork, opened: OpenedVideo, *, file: Path, bar: SecondsBar
) -> VideoDetections:
    """The detections in one video; a video that cannot be read is no error here but has a reason.

    file: as it was named.
    """
    import torch

    from train.inference import detect_in_batches

    video = opened.video
    if opened.reason is not None:
        return VideoDetections(video.key, file, None, (), opened.reason)
    try:
        results = detect_in_batches(trained, opened.batches(), watch=bar.watch)
    except ValueError as error:
        return VideoDetections(video.key, file, None, (), reason_of(error, video))
    except torch.cuda.OutOfMemoryError:
        raise ValueError(
            f"{file}: the GPU has no memory left; --set encoder.clips_per_forward=1 and "
            "--set data.decode_chunk_mib=16 need less, --device cpu needs none"
        ) from None
    return VideoDetections(video.key, file, video.duration, tuple(results[video.key]))


def load_detector(checkpoint: Path, *, device: str, overrides: Iterable[str]) -> TrainedNetwork:
    """The network of a run, checkpoint or model file for detecting in files; errors as load_trained.

    device: auto, cpu or cuda. overrides: key=value on top of the checkpoint's settings.
    """
    from train.inference import load_trained

    # A window that cannot be decoded must never be left out in silence.
    return load_trained(checkpoint, [f"run.device={device}", *overrides, "data.skip_bad=0"])


def auto_thresholds(trained: TrainedNetwork, output: Output) -> dict[str, float]:
    """The least score of each class, as the validation of the checkpoint chose it; ValueError if it has none.

    Warns of overrides that the thresholds do not follow: post-processing, or weights that are not averaged.
    """
    from train.checkpoint import AVERAGE

    chosen = trained.thresholds
    if chosen is None:
        raise ValueError(
            f"{trained.source}: no thresholds; these weights were not validated, or by an older release, or "
            "nothing was right; take the run's best checkpoint, or --min-score instead of --auto-threshold"
        )
    other_weights = not trained.settings.optimizer.ema_decay and (trained.source / AVERAGE).is_file()
    decisive = ("post.", "optimizer.ema_decay") if other_weights else ("post.",)
    changed = [override for override in trained.overrides if override.startswith(decisive)]
    if changed:
        output.warn(f"thresholds were chosen without {changed[0]}, which may change scores")
    labels = (PROPOSAL,) if trained.settings.post.proposals_only else trained.classes
    rows = [(f"{shown(name)} {score:.3f}") for name, score in chosen.scores(labels).items()]
    common = [name for name in labels if name not in chosen.classes]
    same = f"; that of all classes for {first_names(common)}, not found there" if common else ""
    best = first_names(rows, 10, quoted=False)
    output.remark(f"thresholds of best F1 on {chosen.subset!r}: {best}{same}")
    return chosen.scores(labels)


def metadata_of(
    trained: TrainedNetwork, files: Mapping[str, Path], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """What the result of a prediction states: the protocol is what eval and compare measure by, the folder,
    where paths begin in it, is where view looks for the files."""
    stated: dict[str, Any] = {"checkpoint": str(trained.source), "protocol": trained.settings.run.protocol}
    if not all(path.is_absolute() for path in files.values()):
        stated["folder"] = os.getcwd()
    return stated | ({"thresholds": dict(thresholds)} if thresholds else {})


def processes_at_once() -> int:
    """How many files are encoded at once on this machine, by each of the ranks."""
    from train.distributed import world_size

    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // world_size()))


def detect_in_files(
    trained: TrainedNetwork, files: dict[str, Path], selection: Selection, *, output: Output
) -> list[VideoDetections]:
    """What `selection` keeps of the detections in files, by key, in order; as many files are encoded at once
    as there are cores, four at most. A file that cannot be used is named and has a reason.

    Several ranks share the files and the cores; rank 0 has the detections in all, the others none.
    """
    from train.distributed import gather_json, rank, world_size

    check_kind(trained, files)
    own = dict(list(files.items())[rank() :: world_size()])
    found = [
        replace(video, detections=CompactDetections(selection.apply(video.detections)))
        for video in (predict(trained, own, output=output) if own else ())
    ]
    if world_size() == 1:
        return found
    gathered = gather_json(
        [{**vars(video), "file": str(video.file), "detections": list(video.detections)} for video in found]
    )
    by_key = {entry["key"]: entry for part in gathered for entry in part}
    return [
        VideoDetections(
            **{**by_key[key], "file": path, "detections": CompactDetections(by_key[key]["detections"])}
        )
        for key, path in files.items()
        if key in by_key
    ]
