"""The batch that the loader hands to the network: clips or features, and ground truth, of a few windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """B windows of videos (the whole video is one window); the same for training, evaluation and prediction.

    inputs: clips (B, N, C, L, H, W) uint8 RGB, or features (B, D, T) float32. All tensors are on the CPU; the
    network copies inputs to its device.
    windows: (B, 2) float64, start and end in seconds of the video.
    durations: (B,) float64, length of the whole video in seconds.
    gt_segments: per window (A, 2) float64, seconds of the video, clipped to the window; A may be 0.
    gt_labels: per window (A,) int64, index into the data set's classes.
    ends: (B,) float64, seconds of the video at which what a window shows of it ends.
    padding: per window, True where a sample is only there so that all ranks have as many, or could not be
    read: drop its result.
    frames: (B, N, L) int64, the frame of the video that each picture of a clip shows; None in training, where
    pixels depend on more than that, and of features.
    """

    inputs: torch.Tensor
    keys: tuple[str, ...]
    windows: torch.Tensor
    durations: torch.Tensor
    ends: torch.Tensor
    gt_segments: tuple[torch.Tensor, ...]
    gt_labels: tuple[torch.Tensor, ...]
    padding: tuple[bool, ...]
    frames: torch.Tensor | None = None

    def __post_init__(self) -> None:
        size = len(self.keys)
        if self.inputs.dim() == 3:
            _check("inputs", self.inputs, torch.float32, (size, None, None))
        else:
            _check("inputs", self.inputs, torch.uint8, (size, None, 3, None, None, None))
        _check("windows", self.windows, torch.float64, (size, 2))
        _check("durations", self.durations, torch.float64, (size,))
        _check("ends", self.ends, torch.float64, (size,))
        if self.frames is not None:
            _check("frames", self.frames, torch.int64, (size, self.inputs.shape[1], self.inputs.shape[3]))
        for name in ("gt_segments", "gt_labels", "padding"):
            if len(getattr(self, name)) != size:
                raise ValueError(
                    f"Batch.{name}: got {len(getattr(self, name))} entries, want {size}, one per key"
                )
        for segments, labels in zip(self.gt_segments, self.gt_labels, strict=True):
            _check("gt_segments", segments, torch.float64, (len(labels), 2))
            _check("gt_labels", labels, torch.int64, (len(labels),))

    @property
    def video_shares(self) -> torch.Tensor:
        """(B,) float64, above 0, at most 1: the share of each window that shows its video, from the start."""
        start, end = self.windows.unbind(1)
        return ((self.ends - start) / (end - start)).clamp(max=1.0)

    def __len__(self) -> int:
        return len(self.keys)


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    fits = len(tensor.shape) == len(shape)
    fits = fits and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if tensor.dtype != dtype or not fits:
        want = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"Batch.{name}: got {tensor.dtype} {tuple(tensor.shape)}, want {dtype} ({want})")
