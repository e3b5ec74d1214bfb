"""Reads feature files: one HDF5 file a data set, which writer.py writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..annotations import Repair, Video
from ..dataset import Dataset
from ..files import parse_json
from ..hdf5 import member, open_hdf5, reading
from ..records import ground_truth_of_subset, videos_of_subset
from ..text import short
from .records import AGAIN, FORMAT, SUFFIX, VERSION, FeatureVideo, read_description

if TYPE_CHECKING:
    from ..settings import DataSettings

LARGEST_DESCRIPTION = 1 << 30  # bytes of JSON


class FeatureDataset:
    """The features of a data set: what is known of its videos, and the features of each.

    classes: sorted names. num_features: D, channels of a feature. videos: by key. packing: what made the
    features ("settings" in the file), as far as it decides them.
    """

    repairs: tuple[Repair, ...] = ()  # made when the videos were packed

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file
        stored = member(file, "description", h5py.Dataset, path, AGAIN)
        with reading(path, AGAIN):
            if stored.shape != () or stored.id.get_storage_size() > LARGEST_DESCRIPTION:
                raise ValueError(f"a description of shape {stored.shape}")
            text = stored.asstr()[()]
        description = read_description(parse_json(text, where=path), where=path)
        self.classes: tuple[str, ...] = description.classes
        self.num_features = description.num_features
        self.packing: dict[str, Any] = description.settings
        self.videos: dict[str, FeatureVideo] = description.videos
        self._arrays = member(file, "features", h5py.Group, path, AGAIN)

    @staticmethod
    def open(location: str | Path, *, num_features: int | None = None) -> FeatureDataset:
        """Open a feature file; ValueError, one line, if it is none, or its features have another width.

        num_features: the width that the settings state; None: any.
        """
        path = Path(location)
        if not path.is_file():
            raise ValueError(
                f"{short(str(location), 200, quoted=False)}: no such file, want a feature file ({SUFFIX}) of "
                "extract-features or import-features"
            )
        dataset = FeatureDataset(path, open_hdf5(path, kind=FORMAT, version=VERSION, advice=AGAIN))
        if num_features not in (None, dataset.num_features):
            raise ValueError(
                f"data.num_features: got {num_features}, but the features in {path} have "
                f"{dataset.num_features} channels; set it to {dataset.num_features}, or name another file"
            )
        return dataset

    def packed(self, subset: str) -> list[FeatureVideo]:
        """The videos of a subset that have features, by key. Raises ValueError when there are none."""
        return videos_of_subset(self.videos, subset, where=self.path)

    def ground_truth(self, subset: str) -> dict[str, Video]:
        """All videos of a subset, those without features too: they stay in the denominator of mAP."""
        return ground_truth_of_subset(self.videos, subset)

    def features(self, key: str, first: int, end: int) -> NDArray[np.float32]:
        """Features `first` to `end` (excluded) of a video, (n, D).

        Raises ValueError naming the file when they are damaged, or not finite.
        """
        shape = (self.videos[key].num_steps, self.num_features)
        stored = member(self._arrays, key, h5py.Dataset, self.path, AGAIN)
        with reading(self.path, AGAIN):
            if stored.shape != shape or stored.dtype not in (np.float16, np.float32):
                raise ValueError(f"features of {stored.dtype} {stored.shape}, want float16 or 32 {shape}")
            values = np.asarray(stored[first:end], dtype=np.float32)
        check_finite(values, first=first)
        return values


def check_finite(values: NDArray[Any], *, first: int = 0) -> None:
    """ValueError naming the first feature (n, D) with a number that is not finite; first: of which number."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        raise ValueError(
            f"{len(wrong)} features are not finite (NaN or infinity), first number {first + int(wrong[0])}; "
            "make them again, or leave the video out"
        )


AnyDataset = Dataset | FeatureDataset


def is_feature_file(location: str | Path) -> bool:
    """Whether a location, by its ending, is a feature file and no data set of videos."""
    return Path(location).suffix.lower() in (SUFFIX, ".hdf5")


def open_any(location: str | Path) -> AnyDataset:
    """The data set at a location, of features or of videos; errors as those of `open`."""
    return FeatureDataset.open(location) if is_feature_file(location) else Dataset.open(location)


def open_of_settings(settings: DataSettings) -> AnyDataset:
    """The data set that settings name; ValueError if it is of another kind, or width, than they say."""
    if settings.num_features is not None:
        if not is_feature_file(settings.shards):
            raise ValueError(
                f"data.shards: got {short(settings.shards, 200)}, want a feature file ({SUFFIX}), as "
                "data.num_features is set; extract-features makes one of shards"
            )
        return FeatureDataset.open(settings.shards, num_features=settings.num_features)
    if is_feature_file(settings.shards):
        width = FeatureDataset.open(settings.shards).num_features
        raise ValueError(
            f"data.num_features: missing, want {width}, the width of the features in {settings.shards}"
        )
    return Dataset.open(settings.shards)
