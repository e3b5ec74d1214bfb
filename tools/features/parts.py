"""What an extraction has finished so far: one file a video, beside the feature file that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.records import FeatureVideo
from pipeline.files import read_json, remove_folder, replacing, write_json

SETTINGS = "settings.json"


class Parts:
    """The folder OUT.parts: settings.json, and the features of each finished video in a file KEY.npy.

    A killed extraction goes on from there; it is gone once OUT is whole.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, force: bool):
        """ValueError if what lies there was made with other settings, unless `force`, which removes it."""
        self.folder = out.with_name(f"{out.name}.parts")
        if force:
            self.remove()
        written = self.folder / SETTINGS
        plain = json.loads(json.dumps(dict(settings)))
        if written.is_file():
            if read_json(written) != plain:
                raise ValueError(
                    f"{self.folder}: begun with other settings or weights; --force starts anew, or give "
                    "another --out"
                )
            return
        self.remove()
        self.folder.mkdir()
        write_json(written, plain)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def has(self, key: str) -> bool:
        """Whether a video is finished."""
        return self._path(key).is_file()

    def add(self, video: FeatureVideo, features: NDArray[Any]) -> None:
        """Keep the features (T, D) of a video."""
        with replacing(self._path(video.key)) as partial, open(partial, "wb") as file:
            np.save(file, features, allow_pickle=False)

    def read(self, key: str) -> NDArray[Any]:
        """The features of a finished video."""
        array: NDArray[Any] = np.load(self._path(key), allow_pickle=False)
        return array

    def remove(self) -> None:
        """Remove all that was finished."""
        remove_folder(self.folder)
