"""Characteristics of true actions, in the bins XS to XL of DETAD: coverage, length, number of instances.

Alwassel et al., "Diagnosing Error in Temporal Action Detectors" (ECCV 2018). A bin holds its upper edge, not
its lower one, but for the first, which holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.annotations import Video
from train.evaluation.matching import EvaluationData

NAMES = ("XS", "S", "M", "L", "XL")
UNITS = {"coverage": "of the video", "length": "seconds", "instances": "in the video"}
# The published edges; instances have four bins.
BINS: dict[str, dict[str, tuple[float, ...]]] = {
    "activitynet": {
        "coverage": (0, 0.2, 0.4, 0.6, 0.8, 1),
        "length": (0, 30, 60, 120, 180, np.inf),
        "instances": (0, 1, 4, 8, np.inf),
    },
    "thumos": {
        "coverage": (0, 0.02, 0.04, 0.06, 0.08, 1),
        "length": (0, 3, 6, 12, 18, np.inf),
        "instances": (0, 1, 40, 80, np.inf),
    },
}
MAX_BIN_SHARE = 0.9  # published edges that put a larger share of all true actions into one bin are not used


@dataclass(frozen=True)
class Characteristic:
    """Which bin each true action lies in: bin (A,), -1 where it is unknown; edges: one more than names."""

    name: str
    unit: str
    scheme: str  # whose edges: activitynet, thumos, quintiles
    names: tuple[str, ...]
    edges: tuple[float, ...]
    bin: np.ndarray


def characteristics_of(
    data: EvaluationData, ground_truth: Mapping[str, Video], *, scheme: str = "activitynet"
) -> list[Characteristic]:
    """Coverage (length over the video's duration), length and number of true actions in the video.

    ground_truth: what `data` was made from; an action of a video without a stated duration has no coverage.
    Instances are counted over all classes. scheme: a key of BINS; where its edges put over 90 % of
    the true actions into one bin of coverage or length, as with short clips, the quintiles of the data are
    taken.
    """
    durations = np.array([ground_truth[key].duration or np.nan for key in data.keys])
    length = data.true.segments[:, 1] - data.true.segments[:, 0]
    values = {
        "coverage": length / durations[data.true.video],
        "length": length,
        "instances": np.bincount(data.true.video, minlength=len(data.keys))[data.true.video].astype(float),
    }
    return [bin_values(name, value, scheme) for name, value in values.items()]


def bin_values(name: str, values: np.ndarray, scheme: str) -> Characteristic:
    """The values (A,) in the bins of a scheme, or in quintiles; NaN is in no bin."""
    edges = BINS[scheme][name]
    known = values[~np.isnan(values)]
    if name != "instances" and len(known):
        counts = np.bincount(_bin_indices(known, edges))
        if counts.max() > MAX_BIN_SHARE * len(known):
            scheme, edges = "quintiles", tuple(np.quantile(known, np.linspace(0, 1, 6)).tolist())
    indices = np.where(np.isnan(values), -1, _bin_indices(values, edges))
    return Characteristic(name, UNITS[name], scheme, NAMES[: len(edges) - 1], edges, indices)


def _bin_indices(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    return np.searchsorted(np.array(edges[1:-1]), values, side="left")
