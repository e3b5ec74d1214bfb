"""Detects actions for an evaluation: with a checkpoint over a data set, or anew from raw detector outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.features.records import check_made_alike
from pipeline.schemas import parse_yaml
from pipeline.text import first_names
from settings_group import explain
from train.cli import Output
from train.detections import DetectionsFile
from train.evaluation.files import (
    GroundTruth,
    check_external_scores,
    ground_truth_of,
    scores_by_video,
    subset_metadata,
    video_names_of,
)

if TYPE_CHECKING:
    from pipeline.features.dataset import AnyDataset
    from train.inference import TrainedNetwork
    from train.postprocess import ExternalScores, PostSettings


# ----------------------------------------------------------------------------------------- a checkpoint


def data_overrides(shards: str | None, subset: str | None) -> list[str]:
    """The settings (key=value) that detect in this data set and subset; None leaves the checkpoint's own."""
    given = {"data.shards": shards, "data.val_subset": subset}
    return [f"{name}={json.dumps(value)}" for name, value in given.items() if value]


def detect_with_checkpoint(
    checkpoint: Path,
    *,
    overrides: Sequence[str],
    external_scores: ExternalScores | None,
    raw: Path | None,
    output: Output,
) -> tuple[DetectionsFile, GroundTruth]:
    """Run the network of a checkpoint over the validation subset; all videos of it are in the results.

    Several ranks share the videos; rank 0 has the results, the others those of no video.
    overrides: key=value on top of the checkpoint's own settings. raw: also write the detector's outputs to
    this HDF5 file.
    """
    from pipeline.features.dataset import open_of_settings
    from train.distributed import gather_json
    from train.evaluation.shared_videos import share_of_rank, shared_raw_writer
    from train.inference import detect_in, load_trained

    trained = load_trained(checkpoint, overrides)
    settings, subset = trained.settings, trained.settings.data.val_subset
    if not settings.data.shards:
        raise ValueError(f"{checkpoint}: is a model without a data set; name yours with --shards")
    dataset = open_of_settings(settings.data)
    for line in data_set_differences(trained, dataset):
        output.warn(f"{settings.data.shards}: {line}")
    if external_scores is not None:
        external_scores = scores_by_video(external_scores, video_names_of(dataset))
        check_external_scores(external_scores, [video.key for video in dataset.packed(subset)])
    metadata = {"checkpoint": str(trained.source), "shards": settings.data.shards, "subset": subset}
    metadata["protocol"] = settings.run.protocol
    metadata |= subset_metadata(dataset, subset)
    header = {**metadata, "post": settings.post.model_dump(mode="json")}
    source, keys = share_of_rank(dataset), [v.key for v in dataset.packed(subset)]
    raws = shared_raw_writer(raw, keys, classes=trained.classes, metadata=header) if raw else nullcontext()
    found: dict[str, Any] = {}
    with raws as writer:
        if len(keys) > source.rank:  # there may be more ranks than videos
            found = detect_in(
                trained,
                source,
                subset=subset,
                batch_size=settings.optimizer.batch_size,
                watch=lambda windows: output.progress(windows, "detecting", unit="window"),
                record=None if writer is None else writer.add,
                external_scores=external_scores,
            )
    found = {key: entries for part in gather_json(found) for key, entries in part.items()}
    ground_truth = ground_truth_of(dataset, subset)
    return DetectionsFile({key: found.get(key, []) for key in ground_truth.videos}, metadata), ground_truth


def data_set_differences(trained: TrainedNetwork, dataset: AnyDataset) -> list[str]:
    """In what a data set differs from the one the weights were trained on: packing, classes; a line each.

    ValueError for features that were made otherwise: to the weights they are noise.
    """
    lines = []
    if trained.settings.data.num_features is not None:
        check_made_alike(dataset.packing, trained.packing or {}, where=trained.settings.data.shards)
    elif trained.packing is not None:  # older releases kept none
        differ = packing_differences(dataset.packing, trained.packing)
        if differ:
            lines.append(f"packed otherwise than what the weights were trained on ({differ}); mAP may suffer")
    if trained.settings.detector.class_agnostic:  # it knows no classes, whatever there are
        return lines
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
    from pipeline.packing.prepare import ENCODING_FIELDS, FORMERLY

    one_copied = bool(here.get("copy")) != bool(there.get("copy"))
    names = (
        ["copy"]
        if one_copied
        else [n for n in ENCODING_FIELDS if here.get(n, FORMERLY.get(n)) != there.get(n, FORMERLY.get(n))]
    )
    return ", ".join(f"{name} {here.get(name)} here, {there.get(name)} there" for name in names)


# ------------------------------------------------------------------------------------------ raw outputs


def postprocess_raw(
    raws: Sequence[Path], *, overrides: Sequence[str], external_scores: ExternalScores | None
) -> DetectionsFile:
    """Post-process raw files anew, several fused; `overrides`: post.key=value on top of the first's own."""
    from train.fused_outputs import read_fused, read_fused_header
    from train.postprocess import postprocess_videos

    classes, metadata = read_fused_header(raws)
    settings = post_settings({**metadata.pop("post", {}), **post_overrides(overrides)})
    if external_scores is not None:
        names = DetectionsFile({key: [] for key in metadata.get("videos", ())}, metadata).names
        external_scores = {**external_scores, **scores_by_video(external_scores, names)}
    found = postprocess_videos(read_fused(raws), classes, settings, external_scores=external_scores)
    results = {**{key: [] for key in metadata.get("videos", ())}, **found}
    paths = [str(raw) for raw in raws]
    return DetectionsFile(results, {**metadata, "raw": paths[0] if len(paths) == 1 else paths})


def post_settings(values: Mapping[str, Any]) -> PostSettings:
    """Checked settings of post-processing; ValueError naming them as a recipe does."""
    from train.postprocess import PostSettings

    try:
        return PostSettings.model_validate(values)
    except ValidationError as error:
        from train.settings import check_keys  # imports torch, which nothing else here needs

        check_keys(values, PostSettings, where="post.")
        raise ValueError(explain(error, where="post")) from None


def post_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """{"sigma": 0.5} from ("post.sigma=0.5",): all else was settled when the model ran."""
    values = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name.startswith("post."):
            raise ValueError(
                f"--set {override}: with --from-raw, want post.NAME=value such as post.sigma=0.5"
            )
        values[name.removeprefix("post.")] = parse_yaml(text, where=f"--set {name}")
    return values
