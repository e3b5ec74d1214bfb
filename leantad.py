"""LeanTAD from Python: temporal action detection, from raw video to "slide-left from 12.3 s to 17.9 s".

    import leantad

    detector = leantad.load("runs/mine")
    detections = detector("match.mp4", min_score=0.3)
    for detection in detections:
        print(detection.label, detection.start, detection.end, detection.score)
    detections.to_pandas()
    detections.save("predictions")

The functions do what the commands of the same purpose do, with the same numbers; their keyword arguments are
called as the options are (`--min-score` is `min_score`), and `set` takes {"post.nms": "hard"} for `--set`:

    load, detector(...)   leantad predict
    evaluate              leantad eval
    pack                  leantad make-shards
    train                 leantad train

Classes: Detector (load returns it), Detections (what a detector returns: a sequence of Detection), and
TrainingResult (what train returns); help(leantad.Detections) and so on.

What is wrong with an input is a ValueError of one line, or an OSError that names the file. Progress, remarks
and warnings go to stderr; `quiet=True` leaves out all but errors. Importing is quick: torch is imported by
the first call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tools.prediction.detector import Detection as Detection
from tools.prediction.detector import Detections as Detections
from tools.prediction.detector import Detector as Detector
from tools.prediction.errors import one_line_errors

__all__ = ["evaluate", "load", "pack", "train"]  # what help(leantad) shows


@dataclass(frozen=True)
class TrainingResult:
    """A run: its folder, whether it is complete, and its last metrics (as in metrics.json).

    complete: False if it was interrupted and saved; `train(..., resume=True)` goes on, and metrics is empty.
    """

    out: Path
    complete: bool
    metrics: dict[str, Any]


@one_line_errors
def load(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    set: Mapping[str, object] | None = None,
    quiet: bool = False,
) -> Detector:
    """The detector of a run folder (its best checkpoint), checkpoint folder or model file (.leantad).

    device: auto, cpu or cuda. set: other settings than the checkpoint's, by name.
    """
    given = locals()
    from tools.predict import main as predict
    from tools.prediction.detect import load_detector
    from train.cli import options_of

    options = options_of(predict, given)
    trained = load_detector(options["checkpoint"], device=options["device"], overrides=options["overrides"])
    return Detector(trained, quiet=quiet)


@one_line_errors
def evaluate(
    checkpoint: str | Path | None = None,
    *,
    detections: Detections | str | Path | None = None,
    from_raw: str | Path | Sequence[str | Path] = (),
    shards: str | Path | None = None,
    ground_truth: str | Path | None = None,
    subset: str | None = None,
    blocked: str | Path | None = None,
    protocol: str | None = None,
    tiou: str | None = None,
    drop_duplicates: bool = False,
    diagnose: bool = False,
    bootstrap: int | None = None,
    external_scores: str | Path | None = None,
    raw: str | Path | None = None,
    set: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    trust: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """mAP and what else `leantad eval --json` prints, of a checkpoint, of raw outputs or of detections.

    detections: what a detector returned, or a detections.json; with ground_truth: annotations, or the
    dataset.json of a packed data set. from_raw: several files are fused. out: also write the detections to
    this file, unless they are given; None writes none. trust: use the data that somebody else's checkpoint
    names, wherever it lies.
    """
    given = locals()
    from train.cli import Output, options_of
    from train.eval import EvalOptions, evaluate_options
    from train.eval import main as command

    detected = detections.as_file() if isinstance(detections, Detections) else None
    options = EvalOptions(**options_of(command, given | ({"detections": None} if detected else {})))
    return evaluate_options(replace(options, detections=detected or options.detections), Output(quiet))


@one_line_errors
def pack(
    videos: str | Path,
    annotations: str | Path,
    *,
    out: str | Path | None = None,
    subset: str | Sequence[str] = (),
    classes: str | Path | None = None,
    codec: str = "vp9",
    fps: float = 15.0,
    short_side: int = 128,
    gop: int = 32,
    upscale: bool = False,
    copy: bool = False,
    shard_size: int = 64,
    max_pixels: int = 36_000_000,
    max_frames: int = 900_000,
    max_bytes: int = 4 * 2**30,
    workers: int | None = None,
    force: bool = False,
    verify: bool = False,
    check: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Pack a folder of videos with their annotations into the data set `out`; prints a summary and returns
    what `leantad make-shards --json` prints.

    subset: pack only these. fps, short_side: 0 keeps the source's. copy: keep the bytes of each file. check:
    only report, write nothing; out is not needed then. max_pixels (of a frame), max_frames, max_bytes (with
    copy): larger videos are rejected. strict: reject videos of which frames are missing. A video that cannot
    be used is in "rejected".
    """
    given = locals()
    from tools.make_shards import PackingOptions, check_or_pack, make_plan, refuse_encoding_options
    from tools.make_shards import main as command
    from train.cli import Output, options_of

    options = PackingOptions(**options_of(command, given))
    defaults = signature(pack).parameters
    refuse_encoding_options(options, lambda name: given[name] != defaults[name].default)
    return check_or_pack(options, make_plan(options), Output(quiet))


@one_line_errors
def train(
    recipe: str | Path | None = None,
    *,
    out: str | Path,
    set: Mapping[str, object] | None = None,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    quiet: bool = False,
) -> TrainingResult:
    """Train a detector into the run folder `out`, on one GPU or the CPU; prints its progress.

    recipe: a YAML file of settings, or the name of a shipped one ("demo"); not needed to resume. set:
    settings by name, on top of it. resume: go on with the run in out. force: remove it and start anew. trust:
    use all that somebody else's recipe or run names.
    RuntimeError if the run cannot go on: the loss is not finite. Several GPUs want a launcher:
    `deepspeed train/main.py`.
    """
    given = locals()
    from pipeline.files import read_json
    from train.cli import Output, options_of
    from train.main import main as command
    from train.main import run_alone

    options = options_of(command, given)
    flags = {"resume": resume, "force": force, "trust": trust}
    complete = run_alone(options["recipe"], options["overrides"], options["out"], Output(quiet), **flags)
    metrics = read_json(options["out"] / "metrics.json") if complete else {}
    return TrainingResult(options["out"], complete, metrics)
