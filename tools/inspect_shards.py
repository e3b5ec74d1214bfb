"""`leantad inspect SHARDS`: what is in a packed data set, and which settings fit it, each with its reason."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.dataset import Dataset
from pipeline.packing.verify import check_tars
from pipeline.text import columns, first_names, shown
from tools.dataset.decoding import decoding_text, has_gpu
from tools.dataset.pretrained import WEIGHTS, find_weights
from tools.dataset.problems import first_lines, kinds_text, repair_lines
from tools.dataset.recommend import recommend
from tools.dataset.statistics import PERCENTILES, statistics_of
from tools.dataset.training import SCRATCH
from train.cli import PATH, Command, Output, document_options

MAX_LINES = 10  # of a list on the screen; --json has all of them
BAR = 40  # characters of the longest bar


def inspect_dataset(
    location: str, weights: Path | None = None, *, progress: Callable[[Iterable[str]], Iterable[str]] = iter
) -> dict[str, Any]:
    """Statistics and recommended settings as JSON values: {"shards", "facts", "advice", "recipe"}.

    weights: as find_weights takes them. progress: wraps the iteration over the tars, which are all read.
    ValueError: no data set, or damage, or weights that are not I3D's.
    """
    weights = find_weights(weights)
    dataset = Dataset.open(location)
    check_tars(dataset, progress=progress)
    statistics = statistics_of(dataset)
    advice = recommend(dataset, statistics, weights, gpu=weights is not None and has_gpu())
    advice["settings"]["data"]["shards"] = location
    return {"shards": location, "facts": statistics, "advice": advice, "recipe": recipe_of(advice)}


def recipe_of(advice: Mapping[str, Any]) -> str:
    """The settings as YAML with their reasons, to be pasted into a recipe and loaded."""
    lines = []
    for group, values in advice["settings"].items():
        lines.append(f"{group}:")
        reasons = {name: reason for name, reason in advice["reasons"].items() if name.startswith(f"{group}.")}
        for name in dict.fromkeys([*values, *(dotted.partition(".")[2] for dotted in reasons)]):
            reason = textwrap.wrap(reasons.get(f"{group}.{name}", ""), 96)
            lines += [f"  # {line}" for line in reason]
            # JSON is YAML, and quotes what YAML would read as something else.
            lines += [f"  {name}: {json.dumps(values[name])}"] if name in values else []
    return "\n".join(lines) + "\n"


def text_of(document: Mapping[str, Any]) -> str:
    """The document for people."""
    statistics, advice = document["facts"], document["advice"]
    sections = [
        f"{document['shards']}: {statistics['classes']} classes",
        subset_table(statistics["subsets"]),
        "pictures: " + "; ".join(_tally(statistics[name], unit) for name, unit in FORMATS),
        decoding_text(statistics["decoding"]),
        length_table(statistics),
        histogram_text("videos by duration", statistics["duration_histogram"]),
        histogram_text("actions by length", statistics["action_histogram"]),
        class_text(statistics["balance"], statistics["overlaps"]),
        problem_text(statistics),
        f"Settings that fit, to paste into a copy of train/recipes/{advice['start']}.yaml:\n\n"
        + document["recipe"].rstrip(),
        start_text(advice["start"]),
        figure_text(advice),
    ]
    sections += [f"warning: {line}" for line in advice["warnings"]]
    return "\n\n".join(section for section in sections if section)


FORMATS = (("codecs", ""), ("sizes", ""), ("fps", " fps"))


def _tally(counts: Mapping[str, int], unit: str) -> str:
    named = [f"{value}{unit} ({count})" for value, count in counts.items()]
    return first_names(named, 4, quoted=False)


def subset_table(subsets: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per subset."""
    names = ("videos", "packed", "rejected", "hours", "actions", "without_actions")
    rows = [["subset", *(name.replace("_", " ") for name in names)]]
    for subset, row in subsets.items():
        rows.append([shown(subset), *(f"{row[n]:.2f}" if n == "hours" else str(row[n]) for n in names)])
    return columns(rows)


def length_table(statistics: Mapping[str, Any]) -> str:
    """Percentiles of lengths, one line each."""
    titles = {
        "video, seconds": ("duration_seconds", 1),
        "action, seconds": ("action_seconds", 1),
        "action, % of video": ("action_share_of_video", 100),
        "actions per video": ("actions_per_video", 1),
    }
    names = {0: "min", 50: "median", 100: "max"}
    rows = [["", *(names.get(p, f"p{p}") for p in PERCENTILES)]]
    for title, (name, scale) in titles.items():
        values = statistics[name]
        if values:
            rows.append([title, *(f"{scale * values[f'p{p}']:.4g}" for p in PERCENTILES)])
    return columns(rows)


def histogram_text(title: str, histogram: Mapping[str, Sequence[float]]) -> str:
    """Bars of a histogram of seconds; nothing without values."""
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return ""
    rows = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * round(BAR * count / max(counts)) or ("." if count else "")
        rows.append([f"{low:.4g}", "to", f"{high:.4g}", "s", f"{count:d}", bar])
    return f"{title}\n{columns(rows, '>>>>><', indent='  ')}"


def class_text(balance: Mapping[str, Any], overlaps: Mapping[str, int]) -> str:
    """The commonest and the rarest classes, classes of one subset only, and overlaps."""

    def first(counts: Mapping[str, int], number: int) -> str:
        return ", ".join(f"{shown(name)} {count}" for name, count in list(counts.items())[:number])

    lines = []
    if balance["ratio"] is not None:
        lines.append(f"commonest classes: {first(balance['commonest'], 5)}")
        lines.append(f"rarest classes: {first(balance['rarest'], 5)} (ratio {balance['ratio']:g} : 1)")
    in_one = [f"{shown(name)} ({shown(subset)})" for name, subset in balance["in_one_subset"].items()]
    if in_one:
        lines.append(f"in one subset only: {first_names(in_one, MAX_LINES, quoted=False)}")
    pairs = (overlaps["pairs_same_class"], overlaps["pairs_other_class"])
    lines.append(f"overlapping pairs of actions: {pairs[0]} of one class, {pairs[1]} of two classes")
    return "\n".join(lines)


def problem_text(statistics: Mapping[str, Any]) -> str:
    """Rejected videos and repaired annotations."""
    rejects, repairs = statistics["rejects"], statistics["repairs"]
    reasons = (f"{item['video']} ({item['subset']}): {item['reason']}" for item in rejects)
    return "\n".join(
        [
            f"rejected videos: {len(rejects)}",
            *first_lines(reasons, MAX_LINES),
            f"repairs and remarks: {len(repairs)}{kinds_text(repairs)}",
            *repair_lines(repairs, MAX_LINES),
        ]
    )


def start_text(recipe: str) -> str:
    """That there is a better start than random weights, where those are proposed."""
    if recipe != SCRATCH.recipe:
        return ""
    return (
        f"Pretrained weights learn more from few videos: with I3D's in {WEIGHTS} here, or by --weights, "
        "inspect proposes settings for them (docs/choose-settings.md, Pretrained weights)."
    )


def figure_text(advice: Mapping[str, Any]) -> str:
    """What the settings can reach at best."""
    shares = ", ".join(
        f"{100 * share:.1f} % at {name.removeprefix('tiou_')}" for name, share in advice["matchable"].items()
    )
    names = {"p50": "median video", "p95": "p95", "p100": "longest"}
    covered = ", ".join(
        f"{100 * share['frames']:.0f} % / {100 * share['time']:.0f} % ({names[name]})"
        for name, share in advice["coverage"].items()
    )
    return (
        f"Actions that one of the {advice['proposals']} proposals can match, by tIoU: {shares}.\n"
        f"Frames / time of a window that clips see: {covered}."
    )


@click.command(cls=Command, epilog="Example: leantad inspect data/demo --json > inspect.json")
@click.argument("shards")
@click.option(
    "--weights",
    type=PATH,
    help=f"I3D's pretrained weights, as convert-weights writes them. Default: {WEIGHTS}, if it is there.",
)
@document_options
def main(shards: str, weights: Path | None, output: Output) -> None:
    """Tell what is in SHARDS (folder, tar, glob or URL) and which settings fit it, with reasons."""
    document = inspect_dataset(
        shards, weights, progress=lambda tars: output.progress(tars, "reading tars", unit="tar")
    )
    if not output.as_json:
        output.say(text_of(document))
    output.document(document)


if __name__ == "__main__":
    main()
