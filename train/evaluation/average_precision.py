"""Mean average precision of temporal action detection: the official ActivityNet protocol in vectorised numpy.

AP is the area under a class's interpolated precision-recall curve; mAP is its mean over the classes that have
true actions; `train/evaluation/matching.py` says which detections are right.
Heilbron et al., "ActivityNet: A Large-Scale Video Benchmark for Human Activity Understanding" (CVPR 2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.annotations import Video
from pipeline.text import columns, plain_number
from train.detections import Results
from train.evaluation.matching import Matches, evaluation_data, match_detections

# "thumos" is the field's habit: THUMOS-14's thresholds with ActivityNet's matching (the 2014 toolkit's
# `Ambiguous` stretches are not ignored).
PROTOCOLS = {"activitynet": "0.5:0.05:0.95", "thumos": "0.3:0.1:0.7"}
MAX_THRESHOLDS = 1000  # a typing error such as a step of 1e-9 must not fill the memory


def parse_tiou(text: str) -> tuple[tuple[float, ...], str]:
    """Thresholds and protocol name of `activitynet`, `thumos`, `start:step:end` (end included) or `a,b,c`.

    The name of a list is its text. ValueError unless the thresholds rise and lie in (0, 1].
    """
    spec = PROTOCOLS.get(text, text)
    try:
        if ":" in spec:
            start, step, end = (plain_number(part) for part in spec.split(":"))
            count = int((end - start) / step + 1e-6) + 1
            if not 1 <= count <= MAX_THRESHOLDS:
                raise ValueError
            values = [round(start + step * i, 10) for i in range(count)]
        else:
            values = [plain_number(part) for part in spec.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        known = ", ".join(PROTOCOLS)
        raise ValueError(
            f"tiou: got {text!r}, want {known}, start:step:end or a list as in 0.5,0.75"
        ) from None
    return check_tiou(values), text


def protocol_of(stated: object) -> str:
    """What a file states as the protocol of its detections, if it is one that `parse_tiou` reads, else
    ActivityNet's.
    """
    try:
        return parse_tiou(str(stated))[1]
    except ValueError:
        return "activitynet"


def check_tiou(values: Sequence[float]) -> tuple[float, ...]:
    """The thresholds as a tuple; ValueError unless they rise and lie in (0, 1]."""
    values = tuple(float(value) for value in values)
    if not values or not all(0 < value <= 1 for value in values) or list(values) != sorted(set(values)):
        raise ValueError(
            f"tiou: got {list(values)[:12]}, want at least one threshold, rising, each in (0, 1]"
        )
    return values


class Curves:
    """The precision-recall curves of all classes and thresholds, known at their true positives.

    Recall rises only at a true positive and the interpolated precision there is the highest of those to its
    right, so the other detections need only be counted. That makes AP cheap under any weighting of the
    detections: each counts as often as its weight says, copies side by side.
    """

    def __init__(self, hit: np.ndarray, label: np.ndarray, num_classes: int) -> None:
        """hit: (L, n) of bool; label: (n,), rising, the detections of a class by falling score."""
        self.num_classes = num_classes
        self.level, self.position = np.nonzero(hit)
        owner = label[self.position]
        self.begin = np.searchsorted(label, np.arange(num_classes))[owner]
        row = self.level * num_classes + owner
        counts = np.bincount(row, minlength=len(hit) * num_classes)
        column = np.arange(len(row)) - (counts.cumsum() - counts)[row]
        self.shape = (len(hit) * num_classes, int(counts.max(initial=0)))
        self.cell = row * self.shape[1] + column  # of each true positive, in the flattened tables

    def _table(self, values: np.ndarray) -> np.ndarray:
        table = np.zeros(self.shape)
        table.reshape(-1)[self.cell] = values
        return table

    def precision(
        self, kept: np.ndarray, num_true: np.ndarray, average_true: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weight of each true positive and the precision once it is counted, both (L * K, longest) tables.

        kept: (n,) or (L, n) weights. With `average_true`, the normalised precision: as if the class had that
        many true actions, at the same recall and the same false positives.
        """
        seen = np.concatenate([np.zeros((*kept.shape[:-1], 1)), kept.cumsum(axis=-1)], axis=-1)
        if kept.ndim == 1:
            weight, seen = kept[self.position], seen[self.position + 1] - seen[self.begin]
        else:
            weight = kept[self.level, self.position]
            seen = seen[self.level, self.position + 1] - seen[self.level, self.begin]
        weight, seen = self._table(weight), self._table(seen)
        right = weight.cumsum(axis=1)
        wrong = seen - right
        if average_true is not None:
            share = average_true / np.maximum(np.tile(num_true, len(right) // self.num_classes), 1e-300)
            right *= share[:, None]
        # where nothing is seen the table is padding; its precision of 0 changes no envelope
        return weight, np.divide(
            right, right + wrong, out=np.zeros(self.shape), where=(seen > 0) & (right > 0)
        )

    def area(self, kept: np.ndarray, num_true: np.ndarray, average_true: float | None = None) -> np.ndarray:
        """AP (or normalised AP) as a fraction, (L, K); NaN for a class whose `num_true` is 0."""
        weight, precision = self.precision(kept, num_true, average_true)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = (envelope * weight).sum(axis=1).reshape(-1, self.num_classes)
        area: np.ndarray = np.divide(found, num_true, out=np.full(found.shape, np.nan), where=num_true > 0)
        return area


def curves_of(matched: Matches) -> Curves:
    """The curves of all classes."""
    return Curves(matched.hit, matched.detected.label, len(matched.data.labels))


# --- the whole --------------------------------------------------------------------------------------------


def mean_average_precision(
    ground_truth: Mapping[str, Video],
    detections: Results,
    *,
    tiou: Sequence[float] | None = None,
    drop_duplicates: bool = False,
    protocol: str = "activitynet",
) -> dict[str, Any]:
    """mAP of `detections` {video: [{"segment": [start, end] in seconds, "label", "score"}]}, plain numbers.

    Every video of the ground truth counts, detected or not. A detection in a video that it lacks is a false
    positive of its class; one of a class without true actions counts nowhere, as that class has no AP.
    tiou: rising thresholds; without it, those of `protocol`; with it, `protocol` is only a name. Returns
    fractions: {"protocol", "tiou": [..], "mAP": [..], "average_mAP", "per_class": {label: [AP per
    threshold]}, "num_videos", "num_truth", "num_detections"}. ValueError if no video has a true action, or a
    detection cannot be read.
    """
    thresholds = np.array(parse_tiou(protocol)[0] if tiou is None else check_tiou(tiou))
    data = evaluation_data(ground_truth, detections, drop_duplicates=drop_duplicates)
    return precision_metrics(match_detections(data, thresholds), protocol=protocol)


def precision_metrics(matched: Matches, *, protocol: str) -> dict[str, Any]:
    """What `mean_average_precision` returns, of detections that are matched already.

    Of equal scores the earlier detection comes first. The official code leaves their order to numpy's
    version; this one gives the published AutoLoc figure to the last digit (the other way round: 2e-8 off).
    """
    table = curves_of(matched).area(np.ones(len(matched.detected.label)), matched.num_true)  # (L, K)
    means = table.mean(axis=1)
    return {
        "protocol": protocol,
        "tiou": matched.thresholds.tolist(),
        "mAP": means.tolist(),
        "average_mAP": float(means.mean()),
        "per_class": dict(zip(matched.data.labels, table.T.tolist(), strict=True)),
        "num_videos": len(matched.data.keys),
        "num_truth": len(matched.data.true.label),
        "num_detections": len(matched.data.detected.label),
    }


def format_map_table(metrics: Mapping[str, Any]) -> str:
    """The mAP table as text, in percent: a column per threshold and the average; intervals below, if any."""
    rows = [
        ["tIoU", *(f"{value:g}" for value in metrics["tiou"]), "average"],
        ["mAP %", *(_percent(value) for value in [*metrics["mAP"], metrics["average_mAP"]])],
    ]
    if "intervals" in metrics:
        bounds = [*metrics["intervals"]["mAP"], metrics["intervals"]["average_mAP"]]
        rows += [
            [name, *(_percent(pair[side]) for pair in bounds)] for side, name in enumerate(("low", "high"))
        ]
    return columns(rows, ">")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
