"""`leantad inspect SHARDS`: what is in a packed data set, and which settings fit it, each with its reason."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.text import first_names

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
from tqdm import tqdm

from pipeline.dataset import Dataset
from pipeline.files import write_text
from pipeline.packing.verify import check_tars
from tools.dataset.advice import advice_of
from tools.dataset.facts import PERCENTILES, facts_of
from train.cli import Command, Output, check_new_file, force_option, output_options, plain

SHOWN = 10  # lines of a list on the screen; --json has all of them
BAR = 40  # characters of the longest bar


def inspect_dataset(location: str, *, progress: Callable[[Iterable], Iterable] = iter) -> dict[str, Any]:
    """The whole answer as JSON values: {"shards", "facts", "advice", "recipe"}.

    progress: wraps the iteration over the tars, which are all read. ValueError: no data set, or damage.
    """
    dataset = Dataset.open(location)
    check_tars(dataset, progress=progress)
    facts = facts_of(dataset)
    advice = advice_of(dataset, facts)
    advice["settings"]["data"]["shards"] = location
    return {"shards": location, "facts": facts, "advice": advice, "recipe": recipe_of(advice)}


def recipe_of(advice: Mapping[str, Any]) -> str:
    """The settings as YAML with their reasons: what can be pasted into a recipe and loaded."""
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
    """The answer for people."""
    facts, advice = document["facts"], document["advice"]
    sections = [
        f"{document['shards']}: {facts['classes']} classes",
        subset_table(facts["subsets"]),
        "pictures: " + "; ".join(_tally(facts[name], unit) for name, unit in FORMATS),
        length_table(facts),
        histogram_text("videos by duration", facts["duration_histogram"]),
        histogram_text("actions by length", facts["action_histogram"]),
        class_text(facts["balance"], facts["overlaps"]),
        problem_text(facts),
        "Settings that fit, to paste into a recipe:\n\n" + document["recipe"].rstrip(),
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
    columns = ("videos", "packed", "rejected", "hours", "actions", "without_actions")
    width = max(len("subset"), *(len(name) for name in subsets))
    lines = ["subset".ljust(width) + "".join(name.replace("_", " ").rjust(17) for name in columns)]
    for name, row in subsets.items():
        cells = [f"{row[column]:.2f}" if column == "hours" else str(row[column]) for column in columns]
        lines.append(name.ljust(width) + "".join(cell.rjust(17) for cell in cells))
    return "\n".join(lines)


def length_table(facts: Mapping[str, Any]) -> str:
    """Percentiles of lengths, one line each."""
    rows = {
        "video, seconds": ("duration_seconds", 1),
        "action, seconds": ("action_seconds", 1),
        "action, % of video": ("action_share_of_video", 100),
        "actions per video": ("actions_per_video", 1),
    }
    names = {0: "min", 50: "median", 100: "max"}
    lines = [" " * 20 + "".join(names.get(p, f"p{p}").rjust(9) for p in PERCENTILES)]
    for title, (name, scale) in rows.items():
        values = facts[name]
        if values:
            cells = "".join(f"{scale * values[f'p{p}']:9.4g}" for p in PERCENTILES)
            lines.append(title.ljust(20) + cells)
    return "\n".join(lines)


def histogram_text(title: str, histogram: Mapping[str, Sequence[float]]) -> str:
    """Bars of a histogram of seconds; nothing without values."""
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return ""
    lines = [title]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * round(BAR * count / max(counts)) or ("." if count else "")
        lines.append(f"{low:9.4g} to {high:7.4g} s {count:7d} {bar}".rstrip())
    return "\n".join(lines)


def class_text(balance: Mapping[str, Any], overlaps: Mapping[str, int]) -> str:
    """The ends of the class counts, classes of one subset only, and overlaps."""

    def named(counts: Mapping[str, int], number: int) -> str:
        return ", ".join(f"{name} {count}" for name, count in list(counts.items())[:number])

    lines = []
    if balance["ratio"] is not None:
        lines.append(f"commonest classes: {named(balance['commonest'], 5)}")
        lines.append(f"rarest classes: {named(balance['rarest'], 5)} (ratio {balance['ratio']:g} : 1)")
    alone = [f"{name} ({subset})" for name, subset in balance["in_one_subset"].items()]
    lines += [f"in one subset only: {first_names(alone, SHOWN, quoted=False)}"] if alone else []
    pairs = (overlaps["pairs_same_class"], overlaps["pairs_other_class"])
    lines.append(f"overlapping pairs of actions: {pairs[0]} of one class, {pairs[1]} of two classes")
    return "\n".join(lines)


def problem_text(facts: Mapping[str, Any]) -> str:
    """Rejected videos and repaired annotations."""
    rejects = [f"  {item['video']} ({item['subset']}): {item['reason']}" for item in facts["rejects"]]
    repairs = [f"  {item['video']}: {item['kind']}: {item['detail']}" for item in facts["repairs"]]
    kinds = Counter(item["kind"] for item in facts["repairs"])
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    lines = [f"rejected videos: {len(rejects)}", *rejects[:SHOWN]]
    lines += [f"  ...{_more(rejects)}"] if len(rejects) > SHOWN else []
    lines += [f"repairs and remarks: {len(repairs)}" + (f" ({told})" if told else ""), *repairs[:SHOWN]]
    lines += [f"  ...{_more(repairs)}"] if len(repairs) > SHOWN else []
    return "\n".join(lines)


def _more(items: Sequence[str]) -> str:
    return f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""


def figure_text(advice: Mapping[str, Any]) -> str:
    """What the settings can reach at best."""
    shares = ", ".join(
        f"{100 * share:.1f} % at {name.removeprefix('tiou_')}" for name, share in advice["matchable"].items()
    )
    names = {"p50": "median video", "p95": "p95", "p100": "longest"}
    seen = ", ".join(
        f"{100 * share['frames']:.0f} % / {100 * share['time']:.0f} % ({names[name]})"
        for name, share in advice["coverage"].items()
    )
    return (
        f"Actions that one of the {advice['proposals']} proposals can match, by tIoU: {shares}.\n"
        f"Frames / time of a window that clips see: {seen}."
    )


@click.command(
    cls=Command,
    epilog="Example: leantad inspect data/demo --json > inspect.json",
)
@click.argument("shards")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document to this file, too.")
@force_option
@output_options
def main(shards: str, out: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Tell what is in SHARDS (folder, tar, glob or URL) and which settings fit it, with reasons."""
    output = Output(quiet, as_json)
    if out is not None:
        check_new_file(out, force=force)
    reading = partial(tqdm, desc="reading tars", unit="tar", disable=output.no_bar)
    document = inspect_dataset(shards, progress=reading)
    if not as_json:
        output.say(text_of(document))
    output.document(document)
    if out is not None:
        write_text(out, json.dumps(plain(document), indent=1) + "\n")


if __name__ == "__main__":
    main()
