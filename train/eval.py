"""`leantad eval`: detections and mAP from a checkpoint, from raw outputs, or from a detections.json alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, train/ comes first on sys.path, where its files would be top-level modules: the root
    # belongs.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from train.assess import assess, format_assessment
from train.edge import Command, Output, check_new_file, force_option, output_options
from train.metrics import PROTOCOLS, parse_tiou
from train.results import (
    check_external,
    check_overlap,
    coverage_lines,
    read_detections,
    read_external_scores,
    read_truth,
)


@dataclass(frozen=True)
class Outcome:
    """What was detected, and what it is to be compared with (None: nothing at hand)."""

    results: dict[str, list[dict[str, Any]]]
    truth: dict[str, Any] | None
    meta: dict[str, Any]


def evaluate_checkpoint(
    checkpoint: Path,
    *,
    shards: str | None = None,
    subset: str | None = None,
    overrides: tuple[str, ...] = (),
    external_scores: dict[str, dict[str, float]] | None = None,
    raw: Path | None = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> Outcome:
    """Run the network of a checkpoint over a subset of a data set; every video of the subset is in the
    results.

    Settings are the checkpoint's own with `overrides` (key=value) on top; shards and subset default to those
    it was trained with. raw: keep the detector's outputs in this HDF5 file.
    """
    from tqdm import tqdm

    from pipeline.shards import Dataset
    from train.inference import detect_in, load_trained
    from train.raw import RawWriter

    given = [f"data.shards={json.dumps(shards)}"] if shards else []
    given += [f"data.val_subset={json.dumps(subset)}"] if subset else []
    trained = load_trained(checkpoint, [*overrides, *given])
    settings, subset = trained.settings, trained.settings.data.val_subset
    dataset = Dataset.open(settings.data.shards)
    if external_scores is not None:
        check_external(external_scores, [video.key for video in dataset.packed(subset)])
    meta = {"checkpoint": str(trained.folder), "shards": settings.data.shards, "subset": subset}
    header = {**meta, "post": settings.post.model_dump(mode="json"), "videos": sorted(dataset.truth(subset))}
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
    truth = dataset.truth(subset)
    return Outcome({key: found.get(key, []) for key in truth}, truth, meta)


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
) -> Outcome:
    """Post-process a raw file anew; `overrides`: post.key=value on top of the settings in the file."""
    from train.postprocess import PostSettings, detections_of
    from train.raw import read_raw, read_raw_header

    classes, meta = read_raw_header(raw)
    settings = PostSettings.model_validate({**meta.pop("post", {}), **post_overrides(overrides)})
    results: dict[str, list[dict[str, Any]]] = {key: [] for key in meta.pop("videos", [])}
    for windows in grouped(read_raw(raw)):
        key = windows[0].key
        if results.get(key):
            raise ValueError(f"{raw}: windows of {key!r} are not together; write it again with --raw")
        results[key] = detections_of(windows, classes, settings, external_scores=external_scores)
    return Outcome(results, None, {**meta, "raw": str(raw)})


def post_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
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


def check_modes(given: dict[str, Any]) -> None:
    """ValueError unless the options say one thing: where the detections come from."""
    sources = [f"--{name}" for name in ("checkpoint", "from-raw", "detections") if given[name]]
    if len(sources) != 1:
        raise ValueError(
            f"got {' and '.join(sources) or 'no source'}, want one of --checkpoint, --from-raw, --detections"
        )
    if given["detections"] and not (given["ground-truth"] or given["shards"]):
        raise ValueError(
            "--detections: want --ground-truth too (annotations .json or .csv, or a dataset.json)"
        )
    for name in ("raw", "set", "external-scores"):
        if given[name] and given["detections"]:
            raise ValueError(f"--{name}: has no meaning with --detections, which are final")
    if given["raw"] and not given["checkpoint"]:
        raise ValueError("--raw: keeps what the model says, want --checkpoint with it")


def report(
    outcome: Outcome,
    tiou_text: str,
    output: Output,
    *,
    drop_duplicates: bool,
    diagnosis: bool = False,
    bins: str = "activitynet",
    resamples: int = 0,
) -> dict[str, Any]:
    """Print what was compared and the tables; returns the metrics. The options are those of `assess`."""
    assert outcome.truth is not None
    check_overlap(outcome.truth, outcome.results)
    tiou, protocol = parse_tiou(tiou_text)
    metrics = assess(
        outcome.truth,
        outcome.results,
        tiou=tiou,
        protocol=protocol,
        drop_duplicates=drop_duplicates,
        diagnosis=diagnosis,
        bins=bins,
        resamples=resamples,
    )
    for line in coverage_lines(outcome.truth, outcome.results):
        output.say(line)
    if drop_duplicates:
        output.say(f"{metrics['num_truth']} true actions after --drop-duplicates")
    output.say(format_assessment(metrics))
    return metrics


EXAMPLES = """
\b
Examples:
  leantad eval --checkpoint runs/demo --shards data/demo --raw raw.h5
  leantad eval --from-raw raw.h5 --shards data/demo --set post.sigma=0.5
  leantad eval --detections detections.json --ground-truth truth.json --tiou 0.1:0.1:0.9
  leantad eval --detections detections.json --ground-truth truth.json --diagnose --bootstrap 1000
  leantad eval --checkpoint runs/demo --out demo.json --json > metrics.json
"""
FILE = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EXAMPLES)
@click.option("--checkpoint", type=FILE, help="Run folder (its best checkpoint) or checkpoint folder.")
@click.option("--from-raw", type=FILE, help="HDF5 file of --raw: post-process again, without the model.")
@click.option("--detections", type=FILE, help="Finished detections in ActivityNet's format: mAP only.")
@click.option("--shards", help="Data set: folder, tars or URL. Default: the checkpoint's own.")
@click.option("--ground-truth", type=FILE, help="Annotations (.json, .csv) or dataset.json.")
@click.option("--subset", help="Subset to compare with. Default: the detections' own, or the only one.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="activitynet", show_default=True)
@click.option("--tiou", help="Thresholds instead of a protocol: start:step:end or a,b,c.")
@click.option("--drop-duplicates", is_flag=True, help="Leave out repeated and empty true actions.")
@click.option("--diagnose", is_flag=True, help="Kinds of errors, what each costs, which actions are missed.")
@click.option(
    "--bootstrap", "resamples", type=click.IntRange(2), metavar="N", help="95 % intervals from N resamples."
)
@click.option("--external-scores", type=FILE, help="JSON of video-level class scores; the best two are used.")
@click.option("--raw", type=FILE, help="Keep raw detector outputs in this HDF5 file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option(
    "--out", type=FILE, default=Path("detections.json"), show_default=True, help="Where detections go."
)
@force_option
@output_options
def main(
    checkpoint: Path | None,
    from_raw: Path | None,
    detections: Path | None,
    shards: str | None,
    ground_truth: Path | None,
    subset: str | None,
    protocol: str,
    tiou: str | None,
    drop_duplicates: bool,
    diagnose: bool,
    resamples: int | None,
    external_scores: Path | None,
    raw: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Detect actions and measure mAP: from a checkpoint, from raw outputs, or from detections alone."""
    given = {"checkpoint": checkpoint, "from-raw": from_raw, "detections": detections, "shards": shards}
    given |= {"ground-truth": ground_truth, "raw": raw, "set": overrides, "external-scores": external_scores}
    check_modes(given)
    parse_tiou(tiou or protocol)  # a typing error must not cost a run of the model
    output = Output(quiet, as_json)
    for path in [*([] if detections else [out]), *([raw] if raw else [])]:
        check_new_file(path, force=force)
    scores = read_external_scores(external_scores) if external_scores else None
    if checkpoint:
        wanted = {"shards": shards, "subset": subset, "overrides": overrides}
        with output.others_on_stderr():
            outcome = evaluate_checkpoint(
                checkpoint, **wanted, external_scores=scores, raw=raw, output=output
            )
    elif from_raw:
        outcome = reprocess(from_raw, overrides=overrides, external_scores=scores)
    else:
        assert detections is not None
        outcome = Outcome(*_loaded(detections))
    location = ground_truth or (None if checkpoint else shards)
    if location is not None:
        truth, chosen = read_truth(location, subset, hint=outcome.meta.get("subset"))
        outcome = Outcome(outcome.results, truth, {**outcome.meta, "subset": chosen})
    if not detections:
        from train.postprocess import write_detections

        write_detections(out, outcome.results, meta=outcome.meta)
        output.say(f"detections: {out}")
    if outcome.truth is None:
        output.say("no --ground-truth or --shards: nothing to compare with, no mAP")
        output.document({"detections": out})
        return
    metrics = report(
        outcome,
        tiou or protocol,
        output,
        drop_duplicates=drop_duplicates,
        diagnosis=diagnose,
        bins=protocol,
        resamples=resamples or 0,
    )
    output.document(metrics)


def _loaded(path: Path) -> tuple[dict[str, list[dict[str, Any]]], None, dict[str, Any]]:
    results, meta = read_detections(path)
    return results, None, meta


if __name__ == "__main__":
    main()
