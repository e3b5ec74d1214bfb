"""Reads the features of samples: as many feature steps of each window as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from ..reader import Reader
from ..samples import Sample
from ..settings import DataSettings
from .records import FeatureSource, FeatureVideo
from .steps import interpolated, step_positions

FITS = 2.0  # by which steps and features of a window may differ in number


class _Read:
    """There is nothing to wait for."""

    def wait(self) -> None:
        """Returns at once."""


class FeatureReader(Reader):
    """Reads windows of features, (D, T) float32, linear in time between the features of the file.

    D is settings.num_features, T num_clips. Nothing of a picture is left to change in training.
    """

    def __init__(
        self,
        source: FeatureSource,
        samples: Sequence[Sample],
        settings: DataSettings,
        *,
        seed: int,
        training: bool,
        remark: Callable[[str], None],
    ):
        super().__init__(samples, settings, seed=seed, training=training, remark=remark)
        assert settings.num_features is not None, "settings of features"
        self.source, self.num_features, self.num_steps = source, settings.num_features, settings.num_clips

    def empty(self, batch_size: int, *, pin_memory: bool) -> torch.Tensor:
        """Room for the features of a batch, (B, D, T) float32."""
        shape = (batch_size, self.num_features, self.num_steps)
        return torch.empty(shape, dtype=torch.float32, pin_memory=pin_memory)

    def begin(self, sample: Sample, epoch: int, into: torch.Tensor) -> _Read:
        """Read the features of a sample into `into` (D, T)."""
        video = sample.video
        assert isinstance(video, FeatureVideo), "a sample of a feature file"
        positions = step_positions(
            sample.window, self.num_steps, first=video.first, step=video.step, count=video.num_steps
        )
        first, end = int(positions[0]), min(int(positions[-1]) + 2, video.num_steps)
        features = self.source.features(video.key, first, end)
        into.copy_(torch.from_numpy(interpolated(features, positions - first)).T)
        return _Read()

    def stride_warning(self) -> str | None:
        """What to say where windows hold many more features than steps, or many fewer; None: they fit."""
        lengths = [
            (sample.window[1] - sample.window[0]) / sample.video.step
            for sample in self.samples
            if isinstance(sample.video, FeatureVideo)
        ]
        found = median(lengths)
        if 1 / FITS <= self.num_steps / found <= FITS:
            return None
        what = (
            "most features are left out" if self.num_steps < found else "most steps lie between two features"
        )
        return (
            f"data.num_clips: got {self.num_steps} steps a window, where the file has {found:.0f} features "
            f"(the median), so that {what}; is the stride of the file another than the recipe's?"
        )

    def frame_numbers(self, samples: Sequence[Sample]) -> None:
        """Features show no frames."""

    def close(self) -> None:
        """There are no threads; the file stays open."""
