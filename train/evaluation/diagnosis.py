"""Error analysis of detections: kinds of false positives, what each costs, which true actions are missed.

Follows Alwassel et al., "Diagnosing Error in Temporal Action Detectors" (DETAD, ECCV 2018). A detection that
takes no true action is compared with the true action of its video with the highest tIoU, of whatever class:
at the threshold or above it is a double detection (same class) or a wrong label (another); from 0.1 on a
localisation error (same class) or a confusion (another); below, background. All of it at each tIoU threshold,
then averaged.

AP_N, normalised AP, takes precision as if each class had as many true actions as the classes have on average,
so that rare and frequent actions compare.

Departures from the published code: the average number of true actions is not cut to a whole one; of true
actions with equal tIoU one of the detection's own class is preferred; a detection in a video without true
actions is always background; actions that run past their video's end (coverage above 1) stay, in the last
bin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from train.evaluation.average_precision import Curves, curves_of
from train.evaluation.characteristics import Characteristic
from train.evaluation.matching import Matches, overlapping_pairs

DETECTION_KINDS = ("true_positive", "double", "wrong_label", "localisation", "confusion", "background")
ERROR_KINDS = DETECTION_KINDS[1:]
MIN_TIOU = 0.1  # below it a detection has nothing to do with the true action
GROUPS = 10  # the best 10 G detections of a class with G true actions are profiled, G at a time
MIN_PRECISION = 0.05  # a true action found at a lower normalised precision is as good as missed


def detection_kinds(matched: Matches) -> np.ndarray:
    """Which kind each detection is, (thresholds, n) of int8: positions in DETECTION_KINDS."""
    detected, true = matched.detected, matched.data.true
    detection, action, tiou = overlapping_pairs(detected, true, min(MIN_TIOU, matched.thresholds[0]))
    best, own = np.zeros(len(detected.label)), np.zeros(len(detected.label))
    np.maximum.at(best, detection, tiou)
    same = detected.label[detection] == true.label[action]
    np.maximum.at(own, detection[same], tiou[same])
    own_class = own >= best  # also where both are 0: background, whatever the class
    near = best >= matched.thresholds[:, None]
    code = np.where(near, np.where(own_class, 1, 2), np.where(best < MIN_TIOU, 5, np.where(own_class, 3, 4)))
    return np.where(matched.hit, 0, code).astype(np.int8)


def limit_weights(weight: np.ndarray, begin: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Cut the weights to the first `most` of each class; begin and most: (n,), of each detection's class."""
    total = np.concatenate([[0.0], weight.cumsum()])
    before = total[:-1] - total[begin]
    limited: np.ndarray = np.clip(most - before, 0, weight)
    return limited


def summary_statistic(matched: Matches, kinds: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of how often each video counts, (videos,) -> (1 + 6 + 5,): average mAP_N of the best 10 G,
    the share of each kind among them, and the mAP_N gained when each kind of error is taken away."""
    label, hit, num_classes = matched.detected.label, matched.hit, len(matched.data.labels)
    begin = matched.class_offsets[label]

    def summary(copies: np.ndarray) -> np.ndarray:
        true = matched.data.true
        num_true = np.bincount(true.label, weights=copies[true.video], minlength=num_classes)
        weight = np.append(copies, 1.0)[matched.detected.video]  # unknown videos, -1, count once
        weight = limit_weights(weight, begin, GROUPS * num_true[label])
        chosen = np.flatnonzero(weight)
        kept, chosen_kinds = weight[chosen], kinds[:, chosen]
        curves = Curves(hit[:, chosen], label[chosen], num_classes)
        average = num_true.sum() / max(1, np.count_nonzero(num_true))
        base = mean_area(curves, kept, num_true, average)
        share = sum(np.bincount(row, weights=kept, minlength=len(DETECTION_KINDS)) for row in chosen_kinds)
        share = share / max(len(chosen_kinds) * kept.sum(), 1e-300)
        gains = [
            mean_area(curves, kept * (chosen_kinds != code), num_true, average) - base
            for code in range(1, len(DETECTION_KINDS))
        ]
        return np.array([base, *share, *gains])

    return summary


def mean_area(curves: Curves, kept: np.ndarray, num_true: np.ndarray, average_true: float) -> float:
    """Average mAP_N: over the classes with true actions and the thresholds; NaN if there is no such class."""
    area = curves.area(kept, num_true, average_true)[:, num_true > 0]
    return float(area.mean()) if area.size else float("nan")


def profile(matched: Matches, kinds: np.ndarray) -> dict[str, Any]:
    """Kinds of the best G, the next G, ... detections of each class: mean counts over thresholds, all classes
    together, and per class those of its best 10 G."""
    label = matched.detected.label
    group = (np.arange(len(label)) - matched.class_offsets[label]) // matched.num_true[label]
    inside = np.flatnonzero(group < GROUPS)
    label, group, kinds = label[inside], group[inside], kinds[:, inside]
    num_classes, size = len(matched.data.labels), len(DETECTION_KINDS)
    cell = (label * GROUPS + group) * size + kinds
    counts = np.bincount(cell.ravel(), minlength=num_classes * GROUPS * size) / len(kinds)
    counts = counts.reshape(num_classes, GROUPS, size)
    classes = dict(zip(matched.data.labels, counts.sum(axis=1).tolist(), strict=True))
    return {"groups": counts.sum(axis=0).tolist(), "per_class": classes}


def sensitivity(matched: Matches, characteristic: Characteristic) -> list[float | None]:
    """Average mAP_N of the true actions in each bin; None for an empty bin.

    Detections that take an action outside the bin at any threshold are left out, as in the published code.
    """
    curves, num_classes = curves_of(matched), len(matched.data.labels)
    average = len(matched.data.true.label) / num_classes
    values: list[float | None] = []
    for number in range(len(characteristic.names)):
        inside = characteristic.bin == number
        kept = ~((matched.action >= 0) & ~inside[matched.action]).any(axis=0)
        num_true = np.bincount(matched.data.true.label[inside], minlength=num_classes)
        values.append(mean_area(curves, kept.astype(float), num_true, average) if inside.any() else None)
    return values


def missed_actions(matched: Matches) -> np.ndarray:
    """Which true actions nothing finds at a normalised precision above 0.05, (thresholds, A) of bool."""
    curves, true = curves_of(matched), matched.data.true
    average = len(true.label) / len(matched.data.labels)
    _, precision = curves.precision(np.ones(len(matched.detected.label)), matched.num_true, average)
    sound = precision.reshape(-1)[curves.cell] > MIN_PRECISION
    level, position = curves.level[sound], curves.position[sound]
    lost = np.ones((len(matched.thresholds), len(true.label)), dtype=bool)
    lost[level, matched.action[level, position]] = False
    return lost


def diagnose(matched: Matches, characteristics: list[Characteristic]) -> dict[str, Any]:
    """The whole diagnosis as plain numbers; fractions, averaged over the thresholds of `matched`.

    {"tiou", "outcomes": DETECTION_KINDS, "average_mAP_N": of all detections, "top": of the best 10 G alone:
    {"average_mAP_N", "share": {kind: ..}, "gain": {error: ..}}, "profile": {"groups": mean counts of each
    kind in the best G, the next G, ..., "per_class"}, "false_negatives": share of true actions missed,
    "characteristics": {name: {"scheme", "unit", "bins": [{"name", "low", "high", "num_true", "average_mAP_N",
    "false_negatives"}]}}}; a bin without true actions has null for both.
    """
    kinds, lost = detection_kinds(matched), missed_actions(matched)
    top = summary_statistic(matched, kinds)(np.ones(len(matched.data.keys))).tolist()
    average = len(matched.data.true.label) / len(matched.data.labels)
    ones = np.ones(len(matched.detected.label))
    return {
        "tiou": matched.thresholds.tolist(),
        "outcomes": list(DETECTION_KINDS),
        "average_mAP_N": mean_area(curves_of(matched), ones, matched.num_true, average),
        "top": name_summary(top),
        "profile": profile(matched, kinds),
        "false_negatives": float(lost.mean()),
        "characteristics": {item.name: _bins(matched, item, lost) for item in characteristics},
    }


def name_summary(values: list[Any]) -> dict[str, Any]:
    """What `summary_statistic` computes (or an interval of each), under its names."""
    shares, gains = values[1 : 1 + len(DETECTION_KINDS)], values[1 + len(DETECTION_KINDS) :]
    return {
        "average_mAP_N": values[0],
        "share": dict(zip(DETECTION_KINDS, shares, strict=True)),
        "gain": dict(zip(ERROR_KINDS, gains, strict=True)),
    }


def _bins(matched: Matches, item: Characteristic, lost: np.ndarray) -> dict[str, Any]:
    bins = []
    for number, area in enumerate(sensitivity(matched, item)):
        inside = item.bin == number
        low, high = item.edges[number], item.edges[number + 1]
        bins.append(
            {
                "name": item.names[number],
                "low": low,
                "high": None if np.isinf(high) else high,
                "num_true": int(inside.sum()),
                "average_mAP_N": area,
                "false_negatives": float(lost[:, inside].mean()) if inside.any() else None,
            }
        )
    return {"scheme": item.scheme, "unit": item.unit, "bins": bins}
