"""`leantad classify VIDEO...`: what a pretrained classifier sees in videos, over time."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.packing.prepare import find_videos, left_out, prepare
from pipeline.text import columns
from train.cli import PATH, Command, Output, one_line, output_options

if TYPE_CHECKING:
    from pipeline.annotations import Repair
    from pipeline.records import PackedVideo
    from tools.prediction.classification import Classifier, ClassScores

LABELS_HINT = (
    "the file does not name its classes: give the names with --labels, one a line (those of Kinetics-400 are "
    "label_map.txt of github.com/google-deepmind/kinetics-i3d)"
)


def top_of(scores: ClassScores, classifier: Classifier, top: int) -> list[dict[str, Any]]:
    """The likeliest classes of a stretch, best first."""
    values, numbers = scores.probabilities.topk(min(top, len(classifier.labels)))
    return [
        {"label": classifier.labels[number], "score": round(value, 6)}
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
    ]


def classify_video(
    classifier: Classifier, video: PackedVideo, packed: Path, *, frames: int, top: int, output: Output
) -> dict[str, Any]:
    """The result of one video: {"duration", "reason", "clips": [{"start", "end", "labels"}], "overall"}."""
    import torch

    from tools.prediction.classification import ClassScores, classify

    document: dict[str, Any] = {
        "duration": video.duration,
        "reason": video.reject,
        "clips": [],
        "overall": [],
    }
    if video.reject is not None:
        return document
    try:
        found = list(
            classify(
                classifier,
                video,
                packed,
                clip_frames=frames,
                watch=lambda batches: output.progress(batches, video.key, unit="batch"),
            )
        )
    except ValueError as error:
        return {**document, "reason": one_line(error)}
    overall = ClassScores(0.0, found[-1].end, torch.stack([one.probabilities for one in found]).mean(0))
    clips = [
        {"start": round(one.start, 3), "end": round(one.end, 3), "labels": top_of(one, classifier, top)}
        for one in found
    ]
    return {**document, "clips": clips, "overall": top_of(overall, classifier, top)}


def classify_files(
    classifier: Classifier, files: dict[str, Path], *, frames: int, top: int, output: Output
) -> dict[str, dict[str, Any]]:
    """What `classify_video` returns of each file, by key; each is printed as soon as it is known."""
    from tools.prediction.classification import ENCODING
    from tools.prediction.detect import processes_at_once

    documents: dict[str, dict[str, Any]] = {}
    workers = processes_at_once()

    def on_remark(key: str, found: Repair) -> None:
        output.remark(f"{files[key]}: {found.detail}")

    with closing(prepare(files, ENCODING, workers=workers, on_remark=on_remark)) as prepared:
        for video, packed in prepared:
            found = classify_video(classifier, video, packed, frames=frames, top=top, output=output)
            documents[video.key] = {"file": str(files[video.key]), **found}
            if found["reason"] is not None:
                output.error(f"{files[video.key]}: {found['reason']}")
            else:
                output.say(text_of(video.key, found))
    return documents


def text_of(key: str, document: dict[str, Any]) -> str:
    """A line for the whole video, then one for each clip."""

    def names(labels: list[dict[str, Any]]) -> list[str]:
        return [f"{item['label']} {item['score']:.2f}" for item in labels]

    rows = [
        [f"{clip['start']:.2f}", f"{clip['end']:.2f} s", *names(clip["labels"])] for clip in document["clips"]
    ]
    return f"{key}: {', '.join(names(document['overall']))}\n{columns(rows, indent='  ')}"


@click.command(
    cls=Command, epilog="Example: leantad classify match.mp4 --weights rgb_imagenet.pt --labels label_map.txt"
)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--backbone", type=click.Choice(["i3d"]), default="i3d")
@click.option("--weights", type=PATH, required=True, help="Its file, as published.")
@click.option("--labels", type=PATH, help="Names of the classes, one a line.")
@click.option("--frames", type=click.IntRange(8), default=64, help="Frames of a clip, up to 25/s.")
@click.option("--top", type=click.IntRange(1), default=3, help="Labels to show.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@output_options
@click.pass_context
def main(
    ctx: click.Context,
    *,
    videos: tuple[str, ...],
    backbone: str,
    weights: Path,
    labels: Path | None,
    frames: int,
    top: int,
    device: str,
    output: Output,
) -> None:
    """Show the labels that a pretrained classifier gives to VIDEO files, clip after clip.

    Nothing is trained: it tells whether pretrained weights see in your videos what you see. A file that
    cannot be used is named, the others go on, and the exit code is 1; where none can be used, it is 2.
    """
    from tools.prediction.classification import load_classifier
    from train.build_network import resolve_device

    files = find_videos(videos)
    if labels is not None and not labels.is_file():
        raise ValueError(f"--labels: {labels}: no such file")
    classifier = load_classifier(weights, labels, resolve_device(device, where="--device"))
    if labels is None:
        output.remark(LABELS_HINT)
    if others := left_out(videos):
        output.remark(others)
    documents = classify_files(classifier, files, frames=frames, top=top, output=output)
    output.document({"backbone": backbone, "weights": weights, "videos": documents})
    unusable = sum(found["reason"] is not None for found in documents.values())
    ctx.exit(0 if not unusable else 1 if unusable < len(documents) else 2)


if __name__ == "__main__":
    main()
