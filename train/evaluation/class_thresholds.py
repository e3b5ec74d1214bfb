"""A score threshold for each class, where its F1 on the validation videos is best; kept in the checkpoint.

A class of which nothing was found there, or that has no action there, gets the threshold that is best for all
classes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.annotations import Video
from pipeline.files import parse_json
from settings_group import explain
from train.detections import Results
from train.evaluation.operating_point import MatchedDetections, matched_detections, operating_point

THRESHOLDS = "thresholds.json"


class Threshold(BaseModel):
    """The score from which detections count, and the F1 that this gave at tIoU 0.5, 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float = Field(ge=0, allow_inf_nan=False)
    f1: float = Field(ge=0, le=1)


class ClassThresholds(BaseModel):
    """The thresholds of a checkpoint. overall: of all classes together; classes: of those that have one.

    subset: the validation videos that they were chosen on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subset: str
    overall: Threshold
    classes: dict[str, Threshold]

    def scores(self, classes: Sequence[str]) -> dict[str, float]:
        """The threshold of each of the classes."""
        return {name: self.classes.get(name, self.overall).score for name in classes}


def choose_thresholds(
    ground_truth: Mapping[str, Video], results: Results, *, subset: str
) -> ClassThresholds | None:
    """The thresholds with the best F1 on a subset; None where nothing at all was found."""
    matched = matched_detections(ground_truth, results)
    overall = _threshold(matched)
    if overall is None:
        return None
    chosen = {name: _threshold(_of_class(matched, label)) for label, name in enumerate(matched.labels)}
    classes = {name: threshold for name, threshold in chosen.items() if threshold is not None}
    return ClassThresholds(subset=subset, overall=overall, classes=classes)


def _threshold(matched: MatchedDetections) -> Threshold | None:
    """Where F1 is best, the highest of equals; None if nothing is right."""
    point = operating_point(matched)
    return Threshold(score=point.score, f1=point.f1) if point.hits else None


def _of_class(matched: MatchedDetections, label: int) -> MatchedDetections:
    true, detected = (np.flatnonzero(table.label == label) for table in (matched.true, matched.detected))
    return replace(
        matched,
        true=matched.true.take(true),
        detected=matched.detected.take(detected),
        hit=matched.hit[detected],
    )


def read_thresholds(folder: Path) -> ClassThresholds:
    """Those of a checkpoint that has some; ValueError if the file is damaged."""
    path = folder / THRESHOLDS
    try:
        return ClassThresholds.model_validate(parse_json(path.read_bytes(), where=path))
    except ValidationError as error:
        raise ValueError(f"{path}: damaged ({explain(error)[:300]}); use another checkpoint") from None
