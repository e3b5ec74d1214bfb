"""Finds actions in video files with a trained detector: no shards, no launcher; JSON, CSV and subtitles.

Each file is brought into the form that the training data was packed in, then decoded, cut into windows and
detected in as evaluation does it. Memory holds the clips of one window and the candidates of those before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
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

MOST_AHEAD = 4  # files brought into the training form at once: each worker holds some frames at source size
BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} s of video [{elapsed}<{remaining}]"


class SecondsBar:
    """A progress bar that counts seconds of video, of all files together."""

    def __init__(self, stated: dict[str, float], *, no_bar: bool | None):
        tqdm.monitor_interval = 0  # its thread would be in the way of forking
        self.stated, self.total, self.done = stated, sum(stated.values()), 0.0
        self.bar = tqdm(total=round(self.total), bar_format=BAR, disable=no_bar)
        self.bar.set_description("preparing")

    def begin(self, key: str, duration: float) -> None:
        """A video is ready: from now on its real length counts, not the one its header states."""
        self.total += duration - self.stated[key]
        self.bar.total = round(self.total)
        self.bar.set_description(key)

    def watch(self, windows: Iterable[RawWindow]) -> Iterator[RawWindow]:
        """The windows of one video, counted as they come."""
        before = self.done
        for window in windows:
            self.done = before + window.window[1]
            self.bar.update(round(self.done) - self.bar.n)
            yield window
        self.bar.set_description("preparing")


def packing_form(trained: TrainedNetwork) -> EncodingSpec | None:
    """The form of the videos that the weights were trained on; None: files as they are."""
    from train.checkpoint import PACKING, read_packing

    packing = read_packing(trained.folder)
    try:
        return encoding_spec_of(packing)
    except ValueError as error:
        raise ValueError(f"{trained.folder / PACKING}: {error}") from None


def predict(
    trained: TrainedNetwork, files: dict[str, Path], *, no_bar: bool | None = True, workers: int = 1
) -> Iterator[VideoDetections]:
    """Detect in files, by key, one after another; yields what was found in each, in order.

    workers: files that are brought into the training form at once. A file that cannot be used is told on
    stderr and has a reason in what is yielded. ValueError when the checkpoint does not say how its data was
    packed.
    """
    form = packing_form(trained)
    bar = SecondsBar({key: stated_seconds(path) for key, path in files.items()}, no_bar=no_bar)
    with closing(bar.bar), closing(prepare(files, form, workers=workers)) as prepared:
        for video, packed in prepared:
            bar.begin(video.key, video.duration or 0.0)
            found = found_in(trained, video, packed, file=files[video.key], bar=bar)
            if found.reason is not None:
                tqdm.write(f"error: {found.file}: {found.reason}", file=sys.stderr)
            yield found


def found_in(
    trained: TrainedNetwork, video: PackedVideo, packed: Path, *, file: Path, bar: SecondsBar
) -> VideoDetections:
    """What the network finds in one video; a video that cannot be read is no error here but has a reason."""
    import torch

    from train.inference import detect_in

    if video.reject is not None:
        return VideoDetections(video.key, file, None, (), video.reject)
    try:
        source = SingleVideo(video, PackedFile(packed, video.num_frames), trained.classes)
        # One window at a time: the pieces that go through the encoder are full all the same.
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
def main(
    ctx: click.Context,
    videos: tuple[str, ...],
    checkpoint: Path,
    out: Path,
    min_score: float,
    top: int | None,
    classes: str | None,
    device: str,
    overrides: tuple[str, ...],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find actions in VIDEO files, in folders of them (at any depth), or in what globs match.

    Writes detections.json (ActivityNet's format), detections.csv and one .srt of subtitles per video. Scores
    and times are those that `leantad eval` would give for the packed file; the options only leave some out.
    A file that cannot be used is named on stderr, the others go on, and the exit code is 1; where none can be
    used, it is 2, and nothing is written.
    """
    from train.inference import load_trained

    output = Output(quiet, as_json)
    files = find_videos(videos)
    check_outputs(out, list(files), force=force)
    with output.others_on_stderr():
        # A window that cannot be decoded must never be left out without a word.
        trained = load_trained(checkpoint, [f"run.device={device}", *overrides, "data.skip_bad=0"])
        selection = Selection(parse_classes(classes, trained.classes), min_score, top)
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        workers = min(MOST_AHEAD, len(os.sched_getaffinity(0)))
        found = [
            replace(video, detections=selection.apply(video.detections))
            for video in predict(trained, files, no_bar=output.no_bar, workers=workers)
        ]
        if all(video.reason is not None for video in found):
            if is_new:
                out.rmdir()
            raise ValueError(f"{out}: not written, as none of the {len(found)} files could be read")
        write_outputs(out, found, metadata={"checkpoint": str(trained.folder)})
    output.say(format_detections(found))
    output.say(f"written to {out}: detections.json, detections.csv, subtitles (.srt)")
    output.document(document_of(out, trained, found))
    if any(video.reason is not None for video in found):
        ctx.exit(1)


if __name__ == "__main__":
    main()
