"""Reasons for the settings that are recommended, and warnings of what may go wrong in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.text import first_names
from tools.dataset.names import name_warnings
from tools.dataset.windowing import OVERLAP, TRAINED_TIOU, Windowing

LEAST_KEPT = 2 / 3  # share of the frames that a lower rate must leave the fastest videos
RARE = 10  # training actions below which a class is called rare


def reasons_of(
    data: Mapping[str, Any], statistics: Mapping[str, Any], figures: Mapping[str, Any], windowing: Windowing
) -> dict[str, str]:
    """One sentence for each setting that follows from the data, by its dotted name."""
    step, lengths = figures["step_seconds"], statistics["action_seconds"]
    short, long = (f"{lengths.get(name, 0.0):.3g} s" for name in ("p1", "p99"))
    share = f"{100 * windowing.trained:.1f} % of the actions have a proposal of tIoU {TRAINED_TIOU:g} or more"
    if windowing.window_seconds is None:
        window = f"no window_seconds, a video is one window: {share}"
    else:
        whole = f"actions up to {windowing.window_seconds * OVERLAP:g} s lie wholly in one window"
        window = f"{share}; {whole}; 99 % last at most {long}"
    median, large = (f"{100 * figures['coverage'][name]['frames']:.0f} %" for name in ("p50", "p95"))
    sizes = first_names(statistics["sizes"], quoted=False)
    each = "step" if data["num_clips"] == windowing.num_steps else "two steps, as clips are costly here"
    reasons = {
        "data.window_seconds": window,
        "data.num_clips": f"a clip gives one feature, so one clip per {each}: they see "
        f"{median} of the frames of a window in the median video, {large} in a long one (p95)",
        "data.resize": f"pictures are {sizes}; crop is 7/8 of a side",
        "detector.num_steps": f"proposals last 1 to {windowing.num_steps} steps, a step {step['p50']:.3g} s "
        f"in the median video and {step['p100']:.3g} s in the longest; 98 % of all actions last {short} to "
        f"{long}",
    }
    if "flip" in data:
        reasons["data.flip"] = (
            "class names tell left from right, and a mirrored video would get the wrong one"
        )
    return reasons


def warnings_of(
    data: Mapping[str, Any], statistics: Mapping[str, Any], figures: Mapping[str, Any]
) -> list[str]:
    """What may go wrong in training, most serious first; one sentence each."""
    return [
        *subset_warnings(data, statistics["subsets"]),
        *name_warnings(statistics["subsets"], statistics["balance"]["per_class"]),
        *class_warnings(statistics["balance"], data["train_subset"]),
        *length_warnings(data, statistics, figures),
        *video_warnings(statistics),
    ]


def length_warnings(
    data: Mapping[str, Any], statistics: Mapping[str, Any], figures: Mapping[str, Any]
) -> list[str]:
    """Actions that are too short or too long for the proposals, or lie between clips."""
    warnings = []
    total = sum(row["actions"] for row in statistics["subsets"].values())
    unmatchable = figures["unmatchable_actions"]
    if unmatchable:
        warnings.append(
            f"{unmatchable} of {total} actions have no proposal of tIoU 0.5 (shorter than about half a step, "
            "or longer than a window): they can hardly be found"
        )
    longest, window = statistics["action_seconds"].get("p100", 0.0), data.get("window_seconds")
    if window and longest > window:
        warnings.append(f"the longest action lasts {longest:.4g} s, a window {window:g} s")
    covered = figures["coverage"]["p95"]["time"]
    if covered < 0.5:
        warnings.append(
            f"clips cover {100 * covered:.0f} % of the time of a long video (p95): actions between them are "
            "lost"
        )
    return warnings


def video_warnings(statistics: Mapping[str, Any]) -> list[str]:
    """Several frame rates, actions that overlap, videos that were rejected."""
    warnings = []
    if len(statistics["fps"]) > 1:
        warnings.append(rate_warning(list(statistics["fps"]), statistics["packing"]))
    if pairs := statistics["overlaps"]["pairs_same_class"]:
        warnings.append(
            f"pairs of actions of one class that overlap: {pairs}; soft-NMS lowers the score of one of two"
        )
    if rejects := len(statistics["rejects"]):
        warnings.append(f"rejected videos: {rejects}; their actions count as missed in mAP")
    return warnings


def subset_warnings(data: Mapping[str, Any], subsets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """That there is nothing to train on; nothing to validate on, or only what should be kept for the test."""
    warnings = []
    others = [name for name, row in subsets.items() if row["packed"] and name != data["train_subset"]]
    if data["val_subset"] == data["train_subset"] and others:
        warnings.append(
            f"nothing is left to validate on but {first_names(others, 5, quoted=False)}, and a test set that "
            "chooses the checkpoint tests no more: keep some training videos apart; or, the custom on "
            "THUMOS-14, put it in val_subset"
        )
    elif data["val_subset"] == data["train_subset"]:
        warnings.append("there is one subset only: nothing is left to validate on")
    if not any(row["actions"] for row in subsets.values()):
        warnings.append("no packed video has an action: there is nothing to learn")
    return warnings


def rate_warning(rates: Sequence[str], packing: Mapping[str, Any]) -> str:
    """What to do about videos of several frame rates, given the options they were packed with.

    The lowest rate is proposed only where it leaves every video at least two thirds of its frames.
    """
    lowest, highest = min(rates, key=float), max(rates, key=float)
    lower = f"--fps {lowest}" if float(lowest) >= float(highest) * LEAST_KEPT else ""
    if packing.get("copy"):
        way = "pack without --copy"
    elif packing.get("fps") and not packing.get("upscale"):
        way = "let slower videos have frames repeated by --upscale"
        way = f"pack with {lower}, or {way}" if lower else way
    else:
        way = f"pack with {lower or f'--fps {highest} --upscale'}"
    return f"frame rates differ ({first_names(rates, 4, quoted=False)}): {way}"


def class_warnings(balance: Mapping[str, Any], train: str) -> list[str]:
    """Classes that cannot be learned, or hardly, and those that cannot be evaluated."""
    per_class = balance["per_class"].items()
    unseen = [name for name, counts in per_class if counts and not counts.get(train)]
    unevaluated = [name for name, subset in balance["in_one_subset"].items() if subset == train]
    rare = [name for name, counts in per_class if 0 < counts.get(train, 0) < RARE]
    warnings = [
        (unseen, "without a training action, so it cannot be learned"),
        (unevaluated, "in the training subset only, so no evaluation tells how well it is learned"),
        (rare, f"fewer than {RARE} training actions"),
        (balance["without_actions"], "a class without any action"),
    ]
    return [f"{first_names(names, 5, quoted=False)}: {text}" for names, text in warnings if names]
