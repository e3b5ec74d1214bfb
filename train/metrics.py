"""Mean average precision of temporal action detection: the official ActivityNet protocol in vectorised numpy.

Per class, the detections of all videos are sorted by score; each takes, per tIoU threshold, the untaken true
action of its video with the highest tIoU at or above the threshold, or is a false positive. AP is the area
under the interpolated precision-recall curve; mAP is its mean over the classes that have true actions.
Heilbron et al., "ActivityNet: A Large-Scale Video Benchmark for Human Activity Understanding" (CVPR 2015).

The official loop takes detections one by one. Here all of them bid at once: each for its best true action,
which keeps the bidder with the highest score; the others bid for their next one, until nobody has to move
(Gale and Shapley's deferred acceptance). As every true action ranks the bidders alike, by score, there is one
stable outcome: the loop's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

# "thumos" is the field's habit: THUMOS-14's thresholds with ActivityNet's matching (the 2014 toolkit's
# `Ambiguous` stretches are not ignored).
PROTOCOLS = {"activitynet": "0.5:0.05:0.95", "thumos": "0.3:0.1:0.7"}
MAX_THRESHOLDS = 1000  # a typing error such as a step of 1e-9 must not fill the memory
DUPLICATE_SECONDS = 1e-3  # two true actions of one label are the same when both ends agree this far


def parse_tiou(text: str) -> tuple[tuple[float, ...], str]:
    """Thresholds and protocol name of `activitynet`, `thumos`, `start:step:end` (end included) or `a,b,c`.

    The name of a list is its text. ValueError unless the thresholds rise and lie in (0, 1].
    """
    spec = PROTOCOLS.get(text, text)
    try:
        if ":" in spec:
            start, step, end = (float(part) for part in spec.split(":"))
            count = int((end - start) / step + 1e-6) + 1
            if not 1 <= count <= MAX_THRESHOLDS:
                raise ValueError
            values = [round(start + step * i, 10) for i in range(count)]
        else:
            values = [float(part) for part in spec.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        known = ", ".join(PROTOCOLS)
        raise ValueError(
            f"tiou: got {text!r}, want {known}, start:step:end or a list as in 0.5,0.75"
        ) from None
    return check_tiou(values), text


def check_tiou(values: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    if not values or not all(0 < value <= 1 for value in values) or list(values) != sorted(set(values)):
        raise ValueError(
            f"tiou: got {list(values)[:12]}, want at least one threshold, rising, each in (0, 1]"
        )
    return values


# --- from dictionaries to arrays --------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """True actions or detections, a row each: video (n,), label (n,), segments (n, 2) in seconds, scores
    (n,)."""

    video: np.ndarray
    label: np.ndarray
    segments: np.ndarray
    scores: np.ndarray

    def take(self, index: np.ndarray) -> Rows:
        return Rows(self.video[index], self.label[index], self.segments[index], self.scores[index])


def truth_rows(truth: Mapping[str, Any], labels: Mapping[str, int], *, drop_duplicates: bool) -> Rows:
    """The true actions of `truth` in file order; scores are zero.

    With `drop_duplicates`, an action whose label and both ends (within 1 ms) repeat an earlier one of its
    video goes, and so does one without length, as OpenTAD and ActionFormer do; the official protocol keeps
    both.
    """
    video, label, segments = [], [], []
    for index, item in enumerate(truth.values()):
        kept: list[tuple[int, float, float]] = []
        for action in item.actions:
            row = (labels[action.label], float(action.start), float(action.end))
            if drop_duplicates and (row[2] <= row[1] or any(_same(row, other) for other in kept)):
                continue
            kept.append(row)
        video += [index] * len(kept)
        label += [row[0] for row in kept]
        segments += [row[1:] for row in kept]
    return _rows(video, label, segments, np.zeros(len(video)))


def _same(a: tuple[int, float, float], b: tuple[int, float, float]) -> bool:
    return a[0] == b[0] and abs(a[1] - b[1]) <= DUPLICATE_SECONDS and abs(a[2] - b[2]) <= DUPLICATE_SECONDS


def _rows(video, label, segments, scores) -> Rows:
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    return Rows(
        np.asarray(video, np.int64), np.asarray(label, np.int64), segments, np.asarray(scores, np.float64)
    )


def detection_rows(
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
    videos: Mapping[str, int],
    labels: Mapping[str, int],
) -> Rows:
    """The detections in file order; video or label -1 where the ground truth does not know it.

    ValueError naming video and entry for a missing field, a segment that is not two numbers, or a value that
    is not finite. A segment that ends before it starts is kept: it overlaps nothing.
    """
    video = np.repeat(
        np.array([videos.get(key, -1) for key in detections], dtype=np.int64),
        [len(entries) for entries in detections.values()],
    )
    entries = list(chain.from_iterable(detections.values()))
    try:
        label = [labels.get(entry["label"], -1) for entry in entries]
        rows = _rows(
            video, label, [entry["segment"] for entry in entries], [entry["score"] for entry in entries]
        )
        sound = (
            len(rows.segments) == len(entries)
            and np.isfinite(rows.segments).all()
            and np.isfinite(rows.scores).all()
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(_first_problem(detections))
    return rows


def _first_problem(detections: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    want = 'want {"segment": [start, end], "label": text, "score": number}, all finite; fix or remove it'
    for key, entries in detections.items():
        for number, entry in enumerate(entries):
            try:
                start, end = entry["segment"]
                sound = isinstance(entry["label"], str)
                sound = sound and all(math.isfinite(float(value)) for value in (start, end, entry["score"]))
            except (KeyError, TypeError, ValueError):
                sound = False
            if not sound:
                return f"detections of {key!r}, entry {number}: got {entry!r}, {want}"
    return f"detections: a segment, label or score cannot be read, {want}"


# --- matching ---------------------------------------------------------------------------------------------


def overlapping_pairs(detected: Rows, true: Rows, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All (detection, true action, tIoU) of the same video with tIoU >= `least`.

    Three arrays (pairs,), by detection, then by falling tIoU; of equal tIoU the later true action comes
    first, as in the official code.
    """
    by_video = np.argsort(true.video, kind="stable")
    first = np.searchsorted(true.video[by_video], detected.video, "left")
    count = np.searchsorted(true.video[by_video], detected.video, "right") - first
    detection = np.repeat(np.arange(len(count)), count)
    nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    action = by_video[np.repeat(first, count) + nth]
    tiou = pair_tiou(detected.segments[detection], true.segments[action])
    near = np.flatnonzero(tiou >= least)
    detection, action, tiou = detection[near], action[near], tiou[near]
    order = np.lexsort((-action, -tiou, detection))
    return detection[order], action[order], tiou[order]


def pair_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, (n, 2) and (n, 2) -> (n,); 0 where the union has no length."""
    inside = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0)
    union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def match(detected: Rows, true: Rows, thresholds: np.ndarray) -> np.ndarray:
    """Which detections are true positives: (thresholds, n) of bool. `detected` is sorted by falling score."""
    detection, action, tiou = overlapping_pairs(detected, true, thresholds[0])
    num_levels, num_detections, num_true = len(thresholds), len(detected.scores), len(true.scores)
    level, pair = np.nonzero(tiou >= thresholds[:, None])
    options = np.bincount(level * num_detections + detection[pair], minlength=num_levels * num_detections)
    begin = np.searchsorted(detection, np.arange(num_detections))

    level, bidder = np.divmod(np.flatnonzero(options), num_detections)
    cursor = begin[
        bidder
    ]  # the pair each bidder is at; its options at a threshold are the first ones of its list
    end = cursor + options[options > 0]
    holder = np.empty(num_levels * num_true, dtype=np.int64)
    while len(bidder):
        slot = level * num_true + action[cursor]
        holder.fill(num_detections)
        np.minimum.at(holder, slot, bidder)
        outbid = holder[slot] != bidder
        if not outbid.any():
            break
        cursor = cursor + outbid
        alive = cursor < end
        level, bidder, cursor, end = level[alive], bidder[alive], cursor[alive], end[alive]
    hit = np.zeros((num_levels, num_detections), dtype=bool)
    hit[level, bidder] = True
    return hit


def average_precision(hit: np.ndarray, num_true: int) -> np.ndarray:
    """Area under the interpolated precision-recall curve: hit (thresholds, n) by score -> (thresholds,)."""
    precision = hit.cumsum(axis=1) / np.arange(1, hit.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (envelope * hit).sum(axis=1) / num_true


def class_average_precision(detected: Rows, true: Rows, thresholds: np.ndarray) -> np.ndarray:
    """AP of one class, (thresholds,). Of equal scores the earlier detection comes first.

    The official code leaves their order to numpy's version; this one gives the published AutoLoc figure to
    the last digit (the other way round: 2e-8 off).
    """
    order = np.argsort(-detected.scores, kind="stable")
    return average_precision(match(detected.take(order), true, thresholds), len(true.scores))


# --- the whole --------------------------------------------------------------------------------------------


def evaluate(
    truth: Mapping[str, Any],
    detections: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    tiou: Sequence[float] | None = None,
    drop_duplicates: bool = False,
    protocol: str = "activitynet",
) -> dict[str, Any]:
    """mAP of `detections` {video: [{"segment": [start, end] in seconds, "label", "score"}]}, plain numbers.

    truth: {video: an object with `.actions`, each with `.start`, `.end` in seconds and `.label`}. Every video
    in it counts, detected or not. A detection in a video that `truth` lacks is a false positive of its class;
    one of a class without true actions counts nowhere, as that class has no AP. tiou: rising thresholds;
    without it, those of `protocol`; with it, `protocol` is only a name. Returns fractions: {"protocol",
    "tiou": [..], "mAP": [..], "average_mAP", "per_class": {label: [AP per threshold]}, "num_videos",
    "num_truth", "num_detections"}. ValueError if no video has a true action, or a detection cannot be read.
    """
    thresholds = np.array(parse_tiou(protocol)[0] if tiou is None else check_tiou(tiou))
    names = sorted({action.label for video in truth.values() for action in video.actions})
    labels = {name: index for index, name in enumerate(names)}
    true = truth_rows(truth, labels, drop_duplicates=drop_duplicates)
    if not len(true.scores):
        raise ValueError(
            f"ground truth: {len(truth)} videos without a single action, want at least one action"
        )
    detected = detection_rows(detections, {key: index for index, key in enumerate(truth)}, labels)
    table = np.zeros((len(names), len(thresholds)))
    own_true, own_detected = rows_by_label(true, len(names)), rows_by_label(detected, len(names))
    scored = [index for index in range(len(names)) if len(own_true[index])]
    for index in scored:
        table[index] = class_average_precision(
            detected.take(own_detected[index]), true.take(own_true[index]), thresholds
        )
    means = table[scored].mean(axis=0)
    return {
        "protocol": protocol,
        "tiou": thresholds.tolist(),
        "mAP": means.tolist(),
        "average_mAP": float(means.mean()),
        "per_class": {names[index]: table[index].tolist() for index in scored},
        "num_videos": len(truth),
        "num_truth": len(true.scores),
        "num_detections": len(detected.scores),
    }


def rows_by_label(rows: Rows, num_labels: int) -> list[np.ndarray]:
    """The row numbers of each label, in file order; rows of label -1 are in none."""
    order = np.argsort(rows.label, kind="stable")
    edges = np.searchsorted(rows.label[order], np.arange(num_labels + 1))
    return [order[edges[index] : edges[index + 1]] for index in range(num_labels)]


def format_table(metrics: Mapping[str, Any]) -> str:
    """The mAP table as text, in percent: one column per threshold and the average."""
    head = ["tIoU", *(f"{value:g}" for value in metrics["tiou"]), "average"]
    body = ["mAP %", *(f"{100 * value:.2f}" for value in [*metrics["mAP"], metrics["average_mAP"]])]
    widths = [max(len(a), len(b)) for a, b in zip(head, body, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, body)
    )
