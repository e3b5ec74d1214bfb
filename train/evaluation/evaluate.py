"""All metrics of a set of detections: mAP, recall and, where asked, diagnosis and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.annotations import Video
from train.detections import Results
from train.evaluation.average_precision import check_tiou, precision_metrics
from train.evaluation.bootstrap import bootstrap
from train.evaluation.characteristics import BINS, characteristics_of
from train.evaluation.diagnosis import diagnose
from train.evaluation.matching import evaluation_data, match_detections
from train.evaluation.recall import recall_metrics


def evaluate(
    ground_truth: Mapping[str, Video],
    detections: Results,
    *,
    tiou: Sequence[float],
    protocol: str,
    drop_duplicates: bool = False,
    diagnosis: bool = False,
    bins: str = "activitynet",
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """What `mean_average_precision` returns, with "recall" and, where asked, "diagnosis" and "intervals".

    diagnosis: see `diagnosis.diagnose`; bins: whose edges, "activitynet" or "thumos". resamples: of the
    bootstrap over videos, 0 for none; see `bootstrap.bootstrap`. Errors as `mean_average_precision`.
    """
    data = evaluation_data(ground_truth, detections, drop_duplicates=drop_duplicates)
    matched = match_detections(data, np.array(check_tiou(tiou)))
    metrics = precision_metrics(matched, protocol=protocol)
    metrics["recall"] = recall_metrics(matched)
    if diagnosis:
        scheme = bins if bins in BINS else "activitynet"
        metrics["diagnosis"] = diagnose(matched, characteristics_of(data, ground_truth, scheme=scheme))
    if resamples:
        metrics["intervals"] = bootstrap(matched, resamples=resamples, seed=seed, diagnosis=diagnosis)
    return metrics
