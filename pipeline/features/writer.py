"""Writes feature files: whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ..hdf5 import writing
from .dataset import check_finite
from .records import FORMAT, MOST_STEPS, VERSION, FeatureVideo, description_json

Precision = Literal["float16", "float32"]
CHUNK_BYTES = 1 << 18  # a window of a long video is read in whole chunks


def as_stored(features: NDArray[Any], precision: Precision) -> NDArray[Any]:
    """Features (T, D) as they are stored; ValueError if they are no such array, not finite, or overflow."""
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise ValueError(f"features of {features.dtype} {features.shape}, want numbers (T, D), none empty")
    if len(features) > MOST_STEPS:
        raise ValueError(f"{len(features)} features, want at most {MOST_STEPS}")
    check_finite(features)
    with np.errstate(over="ignore"):
        stored = features.astype(precision)
    if not np.isfinite(stored).all():
        largest = float(np.abs(features.astype(np.float64)).max())
        raise ValueError(f"a number of {largest:.6g} does not fit {precision}; want --precision float32")
    return stored


def write_features(
    path: Path,
    videos: Iterable[tuple[FeatureVideo, NDArray[Any] | None]],
    *,
    classes: Sequence[str],
    num_features: int,
    settings: Mapping[str, Any],
    precision: Precision,
) -> None:
    """Write a feature file from videos with their features (T, num_features), None for a rejected one.

    settings: what made the features, plain values. The file appears when it is whole. ValueError naming the
    video whose features are not as stated.
    """
    written: dict[str, FeatureVideo] = {}
    with writing(path) as (file, reserve):
        file.attrs.update({"format": FORMAT, "version": VERSION})
        group = file.create_group("features")
        for video, features in videos:
            written[video.key] = video
            if features is None:
                continue
            try:
                stored = as_stored(features, precision)
                if stored.shape != (video.num_steps, num_features):
                    raise ValueError(
                        f"features {stored.shape}, want {(video.num_steps, num_features)} as others"
                    )
            except ValueError as error:
                raise ValueError(f"video {video.name}: {error}") from None
            reserve(stored.nbytes)
            rows = max(1, min(len(stored), CHUNK_BYTES // stored[0].nbytes))
            group.create_dataset(video.key, data=stored, chunks=(rows, num_features))
        document = description_json(
            written, classes=classes, num_features=num_features, settings=dict(settings)
        )
        text = json.dumps(document)
        reserve(len(text))
        file.create_dataset("description", data=text, dtype=h5py.string_dtype())
