"""`leantad eval`: detections and mAP from a checkpoint, from raw outputs, or from a detections.json alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file, train/ comes first on sys.path, where its files would be top-level modules: the root
    # belongs.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from train.cli import Command, Output, check_new_file, exit_with, force_option, output_options
from train.evaluation.average_precision import PROTOCOLS, parse_tiou
from train.evaluation.coverage import check_overlap, coverage_lines, unread_videos
from train.evaluation.evaluate import evaluate
from train.evaluation.files import read_external_scores, read_ground_truth, renamed
from train.evaluation.sources import EvaluationInput, evaluate_checkpoint, finished, reprocess
from train.evaluation.tables import format_metrics


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
    outcome: EvaluationInput,
    tiou_text: str,
    output: Output,
    *,
    drop_duplicates: bool,
    diagnosis: bool = False,
    bins: str = "activitynet",
    resamples: int = 0,
) -> dict[str, Any]:
    """Print what was compared and the tables; returns the metrics. The options are those of `evaluate`."""
    truth = outcome.ground_truth
    assert truth is not None
    results, meta, names = renamed(outcome.results, outcome.meta, truth)
    check_overlap(truth, results)
    tiou, protocol = parse_tiou(tiou_text)
    metrics = evaluate(
        truth.videos,
        results,
        tiou=tiou,
        protocol=protocol,
        drop_duplicates=drop_duplicates,
        diagnosis=diagnosis,
        bins=bins,
        resamples=resamples,
    )
    for line in [*([names] if names else []), *coverage_lines(truth, results, meta)]:
        output.say(line)
    if drop_duplicates:
        output.say(f"{metrics['num_truth']} true actions after --drop-duplicates")
    output.say(format_metrics(metrics))
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
@click.pass_context
def main(
    ctx: click.Context,
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
    """Detect actions and measure mAP: from a checkpoint, from raw outputs, or from detections alone.

    Detections and ground truth may spell a video in different ways (with an ending, a folder, `v_` in front).
    Videos that could not be read are named, stay in the denominator of mAP, and make the exit code 1.
    """
    given: dict[str, object] = {"checkpoint": checkpoint, "from-raw": from_raw, "detections": detections}
    given |= {"shards": shards, "ground-truth": ground_truth, "raw": raw, "set": overrides}
    given |= {"external-scores": external_scores}
    check_modes(given)
    parse_tiou(tiou or protocol)  # a typing error must not cost a run of the model
    output = Output(quiet, as_json)
    for path in [*([] if detections else [out]), *([raw] if raw else [])]:
        check_new_file(path, force=force)
    scores = read_external_scores(external_scores) if external_scores else None
    if checkpoint:
        with output.others_on_stderr():
            outcome = evaluate_checkpoint(
                checkpoint,
                shards=shards,
                subset=subset,
                overrides=overrides,
                external_scores=scores,
                raw=raw,
                output=output,
            )
    elif from_raw:
        outcome = reprocess(from_raw, overrides=overrides, external_scores=scores)
    else:
        assert detections is not None
        outcome = finished(detections)
    location = ground_truth or (None if checkpoint else shards)
    if location is not None:
        truth = read_ground_truth(location, subset, hint=outcome.meta.get("subset"))
        outcome = EvaluationInput(outcome.results, truth, {**outcome.meta, "subset": truth.subset})
    if not detections:
        from train.detections import write_detections

        write_detections(out, outcome.results, meta=outcome.meta)
        output.say(f"detections: {out}")
    if outcome.ground_truth is None:
        output.say("no --ground-truth or --shards: nothing to compare with, no mAP")
        output.document({"detections": out})
    else:
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
    exit_with(ctx, unread_videos(outcome.meta))


if __name__ == "__main__":
    main()
