"""Where the detections that an evaluation measures come from: a checkpoint, raw outputs, or a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.text import first_names
from train.cli import Output
from train.detections import Results, read_detections
from train.evaluation.files import GroundTruth, check_external_scores, facts_of, ground_truth_of

if TYPE_CHECKING:
    from pipeline.dataset import Dataset
    from train.inference import Trained

FORM = ("codec", "fps", "short_side", "gop", "upscale")  # how videos are packed, unless they are copied


@dataclass(frozen=True)
class EvaluationInput:
    """What was detected, what it is to be compared with (None: nothing at hand), and "external_data"."""

    results: Results
    ground_truth: GroundTruth | None
    meta: dict[str, Any]


def finished(path: Path) -> EvaluationInput:
    """The detections of a file or run folder."""
    results, meta = read_detections(path)
    return EvaluationInput(results, None, meta)


def evaluate_checkpoint(
    checkpoint: Path,
    *,
    shards: str | None = None,
    subset: str | None = None,
    overrides: tuple[str, ...] = (),
    external_scores: dict[str, dict[str, float]] | None = None,
    raw: Path | None = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> EvaluationInput:
    """Run the network of a checkpoint over a subset of a data set; every video of the subset is in the
    results.

    Settings are the checkpoint's own with `overrides` (key=value) on top; shards and subset default to those
    it was trained with. raw: keep the detector's outputs in this HDF5 file.
    """
    from tqdm import tqdm

    from train.inference import detect_in
    from train.raw_outputs import RawWriter

    trained, dataset = _opened(checkpoint, shards, subset, overrides)
    settings, subset = trained.settings, trained.settings.data.val_subset
    for line in other_data(trained, dataset):
        output.remark(f"warning: {settings.data.shards}: {line}")
    if external_scores is not None:
        check_external_scores(external_scores, [video.key for video in dataset.packed(subset)])
    meta = {"checkpoint": str(trained.folder), "shards": settings.data.shards, "subset": subset}
    meta |= facts_of(dataset, subset)
    header = {**meta, "post": settings.post.model_dump(mode="json")}
    with RawWriter(raw, classes=trained.classes, meta=header) if raw else nullcontext() as writer:
        found = detect_in(
            trained,
            dataset,
            subset=subset,
            batch_size=settings.optimizer.batch_size,
            watch=partial(tqdm, desc="detecting", unit="window", disable=output.no_bar),
            external_scores=external_scores,
            keep=writer.add if writer is not None else None,
        )
    ground_truth = ground_truth_of(dataset, subset)
    return EvaluationInput({key: found.get(key, []) for key in ground_truth.videos}, ground_truth, meta)


def _opened(
    checkpoint: Path, shards: str | None, subset: str | None, overrides: tuple[str, ...]
) -> tuple[Trained, Dataset]:
    from pipeline.dataset import Dataset
    from train.inference import load_trained

    given = [f"data.shards={json.dumps(shards)}"] if shards else []
    given += [f"data.val_subset={json.dumps(subset)}"] if subset else []
    trained = load_trained(checkpoint, [*overrides, *given])
    return trained, Dataset.open(trained.settings.data.shards)


def other_data(trained: Trained, dataset: Dataset) -> list[str]:
    """How a data set differs from the one the weights were trained on: by packing, by classes."""
    from train.checkpoint import PACKING, read_packing

    lines = []
    if (trained.folder / PACKING).is_file():  # older releases wrote none
        differ = packing_differences(dataset.settings, read_packing(trained.folder))
        if differ:
            lines.append(f"packed otherwise than what the weights were trained on ({differ}); mAP may suffer")
    for whose, names, others in (
        ("the checkpoint does not know", dataset.classes, trained.classes),
        ("the data set does not have", trained.classes, dataset.classes),
    ):
        unknown = [name for name in names if name not in others]
        if unknown:
            lines.append(f"{whose} {len(unknown)} of the {len(names)} classes: {first_names(unknown)}")
    return lines


def packing_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """What differs between two data sets' `settings`: "fps 30 here, 15 there"; empty if nothing does."""
    one_copied = bool(here.get("copy")) != bool(there.get("copy"))
    names = ["copy"] if one_copied else [name for name in FORM if here.get(name) != there.get(name)]
    return ", ".join(f"{name} {here.get(name)} here, {there.get(name)} there" for name in names)


def grouped(windows: Iterator[Any]) -> Iterator[list[Any]]:
    """Windows of one video after another, as lists."""
    group: list[Any] = []
    for window in windows:
        if group and window.key != group[0].key:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def reprocess(
    raw: Path,
    *,
    overrides: tuple[str, ...] = (),
    external_scores: dict[str, dict[str, float]] | None = None,
) -> EvaluationInput:
    """Post-process a raw file anew; `overrides`: post.key=value on top of the settings in the file."""
    from train.postprocess import PostSettings, detections_of
    from train.raw_outputs import read_raw, read_raw_header

    classes, meta = read_raw_header(raw)
    settings = PostSettings.model_validate({**meta.pop("post", {}), **post_overrides(overrides)})
    results: Results = {key: [] for key in meta.get("videos", ())}
    for windows in grouped(read_raw(raw)):
        key = windows[0].key
        if results.get(key):
            raise ValueError(f"{raw}: windows of {key!r} are not together; write it again with --raw")
        results[key] = detections_of(windows, classes, settings, external_scores=external_scores)
    return EvaluationInput(results, None, {**meta, "raw": str(raw)})


def post_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """{"sigma": 0.5} from ("post.sigma=0.5",): all else was settled when the model ran."""
    import yaml

    values = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name.startswith("post."):
            raise ValueError(
                f"--set {override}: with --from-raw, want post.NAME=value such as post.sigma=0.5"
            )
        values[name.removeprefix("post.")] = yaml.safe_load(text)
    return values
