"""Why a detector misses what it misses: kinds of false positives, what each costs, which actions are not
found.

Follows Alwassel et al., "Diagnosing Error in Temporal Action Detectors" (DETAD, ECCV 2018). A detection that
takes no true action is judged by the true action of its video with the highest tIoU, of whatever class: at
the threshold or above it is a double detection (same class) or a wrong label (another); from 0.1 on a
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

OUTCOMES = ("true_positive", "double", "wrong_label", "localisation", "confusion", "background")
ERRORS = OUTCOMES[1:]
LEAST_TIOU = 0.1  # below it a detection has nothing to do with the true action
GROUPS = 10  # the best 10 G detections of a class with G true actions are looked at, G at a time
LEAST_PRECISION = 0.05  # a true action found at a lower normalised precision is as good as missed


def outcomes_of(matched: Matches) -> np.ndarray:
    """Which of OUTCOMES each detection is, (thresholds, n) of int8."""
    detected, true = matched.detected, matched.data.true
    detection, action, tiou = overlapping_pairs(detected, true, min(LEAST_TIOU, matched.thresholds[0]))
    best, own = np.zeros(len(detected.label)), np.zeros(len(detected.label))
    np.maximum.at(best, detection, tiou)
    same = detected.label[detection] == true.label[action]
    np.maximum.at(own, detection[same], tiou[same])
    own_class = own >= best  # also where both are 0: background, whatever the class
    near = best >= matched.thresholds[:, None]
    code = np.where(
        near, np.where(own_class, 1, 2), np.where(best < LEAST_TIOU, 5, np.where(own_class, 3, 4))
    )
    return np.where(matched.hit, 0, code).astype(np.int8)


def limit_weights(weight: np.ndarray, begin: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Cut the weights to the first `most` of each class; begin and most: (n,), of each detection's class."""
    total = np.concatenate([[0.0], weight.cumsum()])
    before = total[:-1] - total[begin]
    limited: np.ndarray = np.clip(most - before, 0, weight)
    return limited


def headline_of(matched: Matches, outcomes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of how often each video counts, (videos,) -> (1 + 6 + 5,): average mAP_N of the best 10 G,
    the share of each outcome among them, and the mAP_N gained when each kind of error is taken away."""
    label, hit, num_classes = matched.detected.label, matched.hit, len(matched.data.names)
    begin = matched.edges[label]

    def headline(copies: np.ndarray) -> np.ndarray:
        true = matched.data.true
        num_true = np.bincount(true.label, weights=copies[true.video], minlength=num_classes)
        weight = np.append(copies, 1.0)[matched.detected.video]  # unknown videos, -1, count once
        weight = limit_weights(weight, begin, GROUPS * num_true[label])
        chosen = np.flatnonzero(weight)
        kept, kinds = weight[chosen], outcomes[:, chosen]
        curves = Curves(hit[:, chosen], label[chosen], num_classes)
        average = num_true.sum() / max(1, np.count_nonzero(num_true))
        base = mean_area(curves, kept, num_true, average)
        share = sum(np.bincount(row, weights=kept, minlength=len(OUTCOMES)) for row in kinds)
        share = share / max(len(kinds) * kept.sum(), 1e-300)
        gains = [
            mean_area(curves, kept * (kinds != code), num_true, average) - base
            for code in range(1, len(OUTCOMES))
        ]
        return np.array([base, *share, *gains])

    return headline


def mean_area(curves: Curves, kept: np.ndarray, num_true: np.ndarray, average_true: float) -> float:
    """Average mAP_N: over the classes with true actions and the thresholds; NaN if there is no such class."""
    area = curves.area(kept, num_true, average_true)[:, num_true > 0]
    return float(area.mean()) if area.size else float("nan")


def profile(matched: Matches, outcomes: np.ndarray) -> dict[str, Any]:
    """Outcomes of the best G, the next G, ... of each class: mean counts over thresholds, all classes
    together, and per class those of its best 10 G."""
    label = matched.detected.label
    group = (np.arange(len(label)) - matched.edges[label]) // matched.num_true[label]
    inside = np.flatnonzero(group < GROUPS)
    label, group, kinds = label[inside], group[inside], outcomes[:, inside]
    num_classes, size = len(matched.data.names), len(OUTCOMES)
    cell = (label * GROUPS + group) * size + kinds
    counts = np.bincount(cell.ravel(), minlength=num_classes * GROUPS * size) / len(kinds)
    counts = counts.reshape(num_classes, GROUPS, size)
    classes = dict(zip(matched.data.names, counts.sum(axis=1).tolist(), strict=True))
    return {"groups": counts.sum(axis=0).tolist(), "per_class": classes}


def sensitivity(matched: Matches, characteristic: Characteristic) -> list[float | None]:
    """Average mAP_N of the true actions in each bin; None for an empty bin.

    Detections that take an action outside the bin at any threshold are left out, as in the published code.
    """
    curves, num_classes = curves_of(matched), len(matched.data.names)
    average = len(matched.data.true.label) / num_classes
    values: list[float | None] = []
    for number in range(len(characteristic.names)):
        inside = characteristic.bin == number
        kept = ~((matched.action >= 0) & ~inside[matched.action]).any(axis=0)
        num_true = np.bincount(matched.data.true.label[inside], minlength=num_classes)
        values.append(mean_area(curves, kept.astype(float), num_true, average) if inside.any() else None)
    return values


def missed(matched: Matches) -> np.ndarray:
    """Which true actions nothing finds at a normalised precision above 0.05, (thresholds, A) of bool."""
    curves, true = curves_of(matched), matched.data.true
    average = len(true.label) / len(matched.data.names)
    _, precision = curves.precision(np.ones(len(matched.detected.label)), matched.num_true, average)
    sound = precision.reshape(-1)[curves.place] > LEAST_PRECISION
    level, position = curves.level[sound], curves.position[sound]
    lost = np.ones((len(matched.thresholds), len(true.label)), dtype=bool)
    lost[level, matched.action[level, position]] = False
    return lost


def diagnose(matched: Matches, characteristics: list[Characteristic]) -> dict[str, Any]:
    """The whole diagnosis as plain numbers; fractions, averaged over the thresholds of `matched`.

    {"tiou", "outcomes": their names, "average_mAP_N": of all detections, "top": of the best 10 G alone:
    {"average_mAP_N", "share": {outcome: ..}, "gain": {error: ..}}, "profile": {"groups": mean counts of each
    outcome in the best G, the next G, ..., "per_class"}, "false_negatives": share of true actions missed,
    "characteristics": {name: {"scheme", "unit", "bins": [{"name", "low", "high", "num_true", "average_mAP_N",
    "false_negatives"}]}}}; a bin without true actions has null for both.
    """
    outcomes, lost = outcomes_of(matched), missed(matched)
    top = headline_of(matched, outcomes)(np.ones(len(matched.data.keys))).tolist()
    average = len(matched.data.true.label) / len(matched.data.names)
    ones = np.ones(len(matched.detected.label))
    return {
        "tiou": matched.thresholds.tolist(),
        "outcomes": list(OUTCOMES),
        "average_mAP_N": mean_area(curves_of(matched), ones, matched.num_true, average),
        "top": name_headline(top),
        "profile": profile(matched, outcomes),
        "false_negatives": float(lost.mean()),
        "characteristics": {item.name: _bins(matched, item, lost) for item in characteristics},
    }


def name_headline(values: list[Any]) -> dict[str, Any]:
    """What `headline_of` computes (or an interval of each), under its names."""
    shares, gains = values[1 : 1 + len(OUTCOMES)], values[1 + len(OUTCOMES) :]
    return {
        "average_mAP_N": values[0],
        "share": dict(zip(OUTCOMES, shares, strict=True)),
        "gain": dict(zip(ERRORS, gains, strict=True)),
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
