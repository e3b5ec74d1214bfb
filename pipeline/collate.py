"""Joins samples and what was read of them into one batch, with the ground truth of each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .batch import Batch
from .samples import Sample
from .windows import segments_in


def collate(
    samples: Sequence[Sample],
    inputs: torch.Tensor,
    *,
    padding: Sequence[bool],
    frames: torch.Tensor | None,
    labels: Mapping[str, int],
    min_action_overlap: float,
) -> Batch:
    """One batch of samples.

    inputs, frames: as in Batch. padding: per sample, True where its result is to be dropped.
    labels: number of each class. min_action_overlap: fraction of an action that must lie in a window.
    """
    ground_truth = [ground_truth_of(sample, labels, min_overlap=min_action_overlap) for sample in samples]
    return Batch(
        inputs=inputs,
        keys=tuple(sample.video.key for sample in samples),
        windows=torch.tensor([sample.window for sample in samples], dtype=torch.float64),
        durations=torch.tensor([sample.video.duration for sample in samples], dtype=torch.float64),
        ends=torch.tensor([sample.shown_end for sample in samples], dtype=torch.float64),
        gt_segments=tuple(segments for segments, _ in ground_truth),
        gt_labels=tuple(numbers for _, numbers in ground_truth),
        padding=tuple(padding),
        frames=frames,
    )


def ground_truth_of(
    sample: Sample, labels: Mapping[str, int], *, min_overlap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments (A, 2) and labels (A,) of a window; if it holds the whole video every action counts."""
    actions, start = sample.video.actions, sample.window[0]
    is_whole = start == 0 and sample.shown_end == sample.video.duration
    segments, kept = segments_in(
        [(action.start, action.end) for action in actions],
        (start, sample.shown_end),
        min_overlap=0.0 if is_whole else min_overlap,
    )
    numbers = [labels[actions[index].label] for index in kept]
    return torch.from_numpy(segments), torch.tensor(numbers, dtype=torch.int64)
