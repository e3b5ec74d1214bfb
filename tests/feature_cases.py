"""A small feature file, without videos, and what a run on it wants; shared by tests of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.annotations import Action
from pipeline.features.records import FeatureVideo
from pipeline.features.writer import write_features

WIDTH, STEP = 12, 0.25
SETTINGS = {"data__num_features": WIDTH, "data__num_clips": 16, "data__window_seconds": 4}
MADE = {"made_by": "tests", "backbone": "made up", "weights_sha256": "0" * 64}


def feature_file(
    path: Path, *, train: int = 4, val: int = 2, name: str = "v{}", file: str | None = None, **made: object
) -> Path:
    """Videos of 3 to 12 s with two actions each, which shift the features; one more has no features.

    name, file: what the file states of each, with its number.
    """
    rng, videos = np.random.default_rng(0), []
    for number in range(train + val):
        num_steps = int(rng.integers(12, 48))
        duration = num_steps * STEP
        features = rng.normal(size=(num_steps, WIDTH))
        actions = []
        for label, (start, end) in enumerate([(0.1, 0.4), (0.5, 0.9)]):
            features[int(start * num_steps) : int(end * num_steps), label] += 3
            actions.append(Action(start * duration, end * duration, ["jump", "run"][label]))
        subset = "training" if number < train else "validation"
        entry = FeatureVideo(
            key=f"v{number}",
            subset=subset,
            duration=duration,
            num_steps=num_steps,
            first=STEP / 2,
            step=STEP,
            actions=tuple(actions),
            source=name.format(number),
            file=file and file.format(number),
        )
        videos.append((entry, features))
    gone = FeatureVideo("gone", "validation", None, 0, 0.0, 0.0, (), "gone", "no video stream")
    write_features(
        path,
        [*videos, (gone, None)],
        classes=["jump", "run"],
        num_features=WIDTH,
        settings={**MADE, **made},
        precision="float16",
    )
    return path
