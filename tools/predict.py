"""Finds actions in video files with a trained detector: no shards, no launcher; JSON, CSV and subtitles.

Each file is encoded as the training data was when it was packed, then decoded, cut into windows and run
through the network as evaluation does it. Memory holds the clips of one window and the proposals of those
before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
from tqdm import tqdm

from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import (
    SUBSET,
    SingleVideo,
    encoding_spec_of,
    find_videos,
    prepare,
    stated_seconds,
)
from pipeline.packing.transcode import EncodingSpec
from pipeline.records import PackedVideo
from train.cli import Command, Output, force_option, one_line, output_options
from train.detections import (
    Selection,
    VideoDetections,
    check_outputs,
    format_detections,
    parse_classes,
    write_outputs,
)

if TYPE_CHECKING:
    from train.inference import TrainedNetwork
    from train.postprocess import RawWindow

MAX_WORKERS = 4  # files that are re-encoded at once: each worker holds some frames at source size
BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s of video [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command, but for --quiet and --json."""

    videos: tuple[str, ...]
    checkpoint: Path
    out: Path
    min_score: float
    top: int | None
    classes: str | None
    device: str
    overrides: tuple[str, ...]
    force: bool


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
        self.bar.set_description(key)

    def watch(self, windows: Iterable[RawWindow]) -> Iterator[RawWindow]:
        """The windows of one video, counted as they are yielded."""
        before = self.done
        for window in windows:
            self.done = before + window.window[1]
            self.bar.update(round(self.done) - self.bar.n)
            yield window
        self.bar.set_description("preparing")


def encoding_spec(trained: TrainedNetwork) -> EncodingSpec | None:
    """How the videos were encoded that the weights were trained on; None: their bytes were kept."""
    from train.checkpoint import PACKING, read_packing

    packing = read_packing(trained.folder)
    try:
        return encoding_spec_of(packing)
    except ValueError as error:
        raise ValueError(f"{trained.folder / PACKING}: {error}") from None


def predict(
    trained: TrainedNetwork, files: dict[str, Path], *, output: Output, workers: int = 1
) -> Iterator[VideoDetections]:
    """Detect in files, by key, one after another; yields the detections in each, in order.

    workers: files that are re-encoded at once. A file that cannot be used is named on stderr and has a reason
    in what is yielded. ValueError when the checkpoint does not say how its data was packed.
    """
    spec = encoding_spec(trained)
    bar = SecondsBar({key: stated_seconds(path) for key, path in files.items()}, no_bar=output.no_bar)
    with closing(bar.bar), closing(prepare(files, spec, workers=workers)) as prepared:
        for video, packed in prepared:
            bar.begin(video.key, video.duration or 0.0)
            found = detect_in_file(trained, video, packed, file=files[video.key], bar=bar)
            if found.reason is not None and len(files) > 1:  # the only one is named as the command ends
                output.error(f"{found.file}: {found.reason}")
            yield found


def detect_in_file(
    trained: TrainedNetwork, video: PackedVideo, packed: Path, *, file: Path, bar: SecondsBar
) -> VideoDetections:
    """The detections in one video; a video that cannot be read is no error here but has a reason.

    packed: the file as prepare encoded it; file: as it was named.
    """
    import torch

    from train.inference import detect_in

    if video.reject is not None:
        return VideoDetections(video.key, file, None, (), video.reject)
    try:
        source = SingleVideo(video, PackedFile(packed, video.num_frames), trained.classes)
        # One window at a time is enough: it has as many clips as go through the encoder at once.
        results = detect_in(trained, source, subset=SUBSET, batch_size=1, watch=bar.watch)
    except ValueError as error:
        reason = one_line(error).removeprefix(f"{video.file}: video {video.key}: ")
        return VideoDetections(video.key, file, None, (), reason)
    except torch.cuda.OutOfMemoryError:
        raise ValueError(
            f"{file}: the GPU has no memory left; --set encoder.clips_per_forward=1 and "
            "--set data.decode_chunk_frames=64 need less, --device cpu needs none"
        ) from None
    return VideoDetections(video.key, file, video.duration, tuple(results[video.key]))


def predict_and_write(
    options: PredictOptions, files: dict[str, Path], output: Output
) -> tuple[TrainedNetwork, list[VideoDetections]]:
    """Detect in all files and write what was detected; ValueError, and no file, if none could be read."""
    from train.inference import load_trained

    # A window that cannot be decoded must never be left out in silence.
    overrides = [f"run.device={options.device}", *options.overrides, "data.skip_bad=0"]
    trained = load_trained(options.checkpoint, overrides)
    selection = Selection(parse_classes(options.classes, trained.classes), options.min_score, options.top)
    is_new = not options.out.exists()
    options.out.mkdir(parents=True, exist_ok=True)
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    found = [
        replace(video, detections=selection.apply(video.detections))
        for video in predict(trained, files, output=output, workers=workers)
    ]
    if all(video.reason is not None for video in found):
        if is_new:
            options.out.rmdir()
        only = f"{found[0].file}: {found[0].reason}; " if len(found) == 1 else ""
        raise ValueError(f"{only}{options.out}: not written, as none of the {len(found)} files could be read")
    write_outputs(options.out, found, metadata={"checkpoint": str(trained.folder)})
    return trained, found


def document_of(out: Path, trained: TrainedNetwork, found: list[VideoDetections]) -> dict[str, Any]:
    """What --json prints."""
    videos = {
        video.key: {
            "file": video.file,
            "duration": video.duration,
            "reason": video.reason,
            "detections": video.detections,
        }
        for video in found
    }
    return {"out": out, "checkpoint": trained.folder, "classes": trained.classes, "videos": videos}


EPILOG = """
\b
Examples:
  leantad predict match.mp4 --checkpoint runs/demo --min-score 0.3
  leantad predict recordings/ "more/*.mkv" --checkpoint runs/demo --out found --classes jump,run --top 20
"""
FILE = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--checkpoint", type=FILE, required=True, help="Run folder (its best) or checkpoint folder.")
@click.option("--out", type=FILE, default=Path("predictions"), show_default=True, help="Folder to write.")
@click.option("--min-score", type=click.FloatRange(0), default=0.0, help="Leave out what scores less.")
@click.option("--top", type=click.IntRange(1), help="Keep the best N of each video.", metavar="N")
@click.option("--classes", help="Keep these classes only.", metavar="A,B")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@force_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, quiet: bool, as_json: bool, **values: Any) -> None:
    """Find actions in VIDEO files, in folders of them (at any depth), or in what globs match.

    Writes detections.json (ActivityNet's format), detections.csv and one .srt of subtitles per video. Scores
    and times are those that `leantad eval` would give for the packed file; the options only leave some out.
    A file that cannot be used is named on stderr, the others go on, and the exit code is 1; where none can be
    used, it is 2, and nothing is written.
    """
    options, output = PredictOptions(**values), Output(quiet, as_json)
    files = find_videos(options.videos)
    check_outputs(options.out, list(files), force=options.force)
    with output.others_on_stderr():
        trained, found = predict_and_write(options, files, output)
    output.say(format_detections(found))
    output.say(f"written to {options.out}: detections.json, detections.csv, subtitles (.srt)")
    output.document(document_of(options.out, trained, found))
    ctx.exit(1 if any(video.reason is not None for video in found) else 0)


if __name__ == "__main__":
    main()
