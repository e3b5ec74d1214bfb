"""Recall of true actions: AR@AN of the ActivityNet proposal protocol, and recall at k.

AR@AN (Heilbron et al., CVPR 2015; the proposal task of the ActivityNet challenges): a true action is found
when any proposal kept for its video reaches the tIoU, whatever its label; recall is averaged over tIoU
0.5:0.05:0.95. Not the same number of proposals is kept of every video but the same share, so that AN
proposals are kept per video on average: long videos, which have more proposals, keep more. The area under the
curve (AUC) is divided by its width, AN 1 to 100.

As in the official code: only videos with a true action count as videos, but the proposals of every video in
the file set the share; numbers of proposals are cut down to whole ones by floating-point arithmetic, its
rounding included (100 proposals keep 28, not 29, at AN 29). Here, proposals of equal score keep the order of
the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.evaluation.matching import EvaluationData, Matches, overlapping_pairs

RECALL_TIOU = np.round(np.arange(50, 100, 5) / 100, 2)
MAX_PROPOSALS = 100  # AN runs from 1 to this
SHOWN_AN = (1, 5, 10, 50, 100)
TOP_K = (1, 5, 10, 50, 100)
NEVER = np.iinfo(np.int64).max // 2  # the rank of what is not found; halved, so that adding one fits


@dataclass(frozen=True)
class FirstRanks:
    """When each true action is first found while its video's proposals are gone through by falling score.

    video: (A,) of each true action; rank: (thresholds, A), 0 for the best proposal, NEVER when none reaches
    the tIoU; counts: (videos,) proposals of each video; num_unknown: proposals of videos that the ground
    truth does not have.
    """

    video: np.ndarray
    rank: np.ndarray
    counts: np.ndarray
    num_unknown: int


def first_ranks(data: EvaluationData, thresholds: np.ndarray, *, same_label: bool = False) -> FirstRanks:
    """With `same_label`, only detections of the action's class find it; the others still take their ranks."""
    detected, true = data.detected, data.true
    order = np.lexsort((-detected.scores, detected.video))
    detected = detected.take(order)
    begin = np.searchsorted(detected.video, np.arange(len(data.keys) + 1))
    detection, action, tiou = overlapping_pairs(detected, true, thresholds[0])
    if same_label:
        same = detected.label[detection] == true.label[action]
        detection, action, tiou = detection[same], action[same], tiou[same]
    position = detection - begin[detected.video[detection]]
    rank = np.full((len(thresholds), len(true.label)), NEVER)
    for level, threshold in enumerate(thresholds):
        near = tiou >= threshold
        np.minimum.at(rank[level], action[near], position[near])
    return FirstRanks(true.video, rank, np.diff(begin), int(begin[0]))


def average_recall(ranks: FirstRanks, copies: np.ndarray | None = None) -> np.ndarray:
    """AR for AN = 1 .. 100, (100,). copies: (videos,) how often each video counts; without it, once."""
    copies = np.ones(len(ranks.counts)) if copies is None else copies
    with_actions = np.bincount(ranks.video, minlength=len(copies)) > 0
    wanted = MAX_PROPOSALS * float(copies[with_actions].sum())
    proposals = float((copies * ranks.counts).sum()) + ranks.num_unknown
    weight = copies[ranks.video]
    if not proposals or not weight.any():
        return np.full(MAX_PROPOSALS, np.nan if not weight.any() else 0.0)
    kept = np.minimum((ranks.counts * (wanted / proposals)).astype(np.int64), ranks.counts)  # (videos,)
    total = float((copies * kept)[with_actions].sum())
    if not total:
        return np.zeros(MAX_PROPOSALS)
    shares = np.arange(1, MAX_PROPOSALS + 1) / 100.0 * (wanted / total)
    level, action = np.nonzero(ranks.rank < kept[ranks.video])
    step = _first_step(ranks.rank[level, action] + 1, kept[ranks.video[action]], shares)
    gained = np.bincount(step, weights=weight[action], minlength=MAX_PROPOSALS + 1)[:MAX_PROPOSALS]
    recall: np.ndarray = gained.cumsum() / (weight.sum() * len(ranks.rank))
    return recall


def _first_step(needed: np.ndarray, kept: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The first of the rising `shares` whose product with `kept` reaches `needed`, as the product rounds."""
    step = np.searchsorted(shares, needed / kept)
    before = np.maximum(step - 1, 0)
    step = np.where((step > 0) & (kept * shares[before] >= needed), before, step)
    inside = np.minimum(step, len(shares) - 1)
    late: np.ndarray = np.where((step < len(shares)) & (kept * shares[inside] < needed), step + 1, step)
    return late


def area_under(recall: np.ndarray) -> float:
    """AUC of AR over AN 1 .. 100, divided by 100 as the official code does (so at most 0.99)."""
    return float(np.sum((recall[1:] + recall[:-1]) / 2) / len(recall))


def recall_at(ranks: FirstRanks) -> np.ndarray:
    """Share of true actions found by one of the k best of their video: (thresholds, len(TOP_K))."""
    share: np.ndarray = (ranks.rank[:, :, None] < np.asarray(TOP_K)).mean(axis=1)
    return share


def recall_metrics(matched: Matches) -> dict[str, Any]:
    """AR@AN, its AUC and recall at k, plain numbers (fractions).

    {"AR": {"1": .., "100": ..}, "AUC", "curve": [AR at AN 1 .. 100], "recall_at": {"k": [..], "tiou": [..],
    "same_class": [[recall of each k] of each tIoU], "any_class": the same}}. Recall at k is at the thresholds
    of `matched`: among the k best detections of a video, of all its classes together.
    """
    curve = average_recall(first_ranks(matched.data, RECALL_TIOU))
    tables = {
        name: recall_at(first_ranks(matched.data, matched.thresholds, same_label=same)).tolist()
        for name, same in (("same_class", True), ("any_class", False))
    }
    return {
        "AR": {str(count): float(curve[count - 1]) for count in SHOWN_AN},
        "AUC": area_under(curve),
        "curve": curve.tolist(),
        "recall_at": {"k": list(TOP_K), "tiou": matched.thresholds.tolist(), **tables},
    }


def format_recall(recall: Mapping[str, Any], intervals: Mapping[str, Any] | None = None) -> str:
    """AR@AN with its AUC (and their intervals), and recall at k averaged over tIoU, in percent."""
    figures = {**{f"AR@{count}": value for count, value in recall["AR"].items()}, "AUC": recall["AUC"]}
    bounds = {} if intervals is None else {f"AR@{n}": pair for n, pair in intervals["AR"].items()}
    bounds |= {} if intervals is None else {"AUC": intervals["AUC"]}
    shown = [f"{name} {100 * value:.2f}{_range(bounds.get(name))}" for name, value in figures.items()]
    lines = [f"{'  '.join(shown)}  (percent; tIoU 0.5:0.05:0.95, any class)"]
    table = recall["recall_at"]
    for name, title in (("same_class", "of its class"), ("any_class", "of any class")):
        means = np.mean(table[name], axis=0)
        cells = "  ".join(f"{k}: {100 * value:.2f}" for k, value in zip(table["k"], means, strict=True))
        lines.append(f"recall at k detections {title}, %  {cells}")
    return "\n".join(lines)


def _range(bounds: Sequence[float | None] | None) -> str:
    if not bounds or bounds[0] is None or bounds[1] is None:
        return ""
    return f" [{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]"
