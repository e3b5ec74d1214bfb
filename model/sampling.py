"""Draws the clips of each video whose gradient is computed, before any is encoded: functions of a generator.

After Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023). Every video has the
same number of clips kept, on every rank: ranks that disagree on a count wait for each other for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["random", "uniform", "block"]
AROUND = 0.5  # share of an action's length before and after it that counts as around it: ETAD's RoI context


def num_kept(num_clips: int, ratio: float) -> int:
    """M, how many of `num_clips` clips a ratio keeps: rounded up, at least one.

    The 1e-9 forgives a ratio such as 0.3 for not being exact in binary: 0.3 of 10 clips is 3, not 4.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips: got {num_clips}, want at least 1 clip per video")
    if not 0 < ratio <= 1:
        raise ValueError(f"clip sampling ratio: got {ratio}, want above 0 and at most 1 (1 keeps every clip)")
    return max(1, math.ceil(ratio * num_clips - 1e-9))


def _random(num_videos: int, num_clips: int, count: int, generator: torch.Generator) -> Tensor:
    rows = torch.rand(num_videos, num_clips, generator=generator, device=generator.device)
    return rows.argsort(dim=1)[:, :count].sort(dim=1).values


def _uniform(num_videos: int, num_clips: int, count: int, generator: torch.Generator) -> Tensor:
    # (i * N + phase) // M in whole numbers: over all (i, phase), i * N + phase is 0 .. M * N - 1, each once,
    # and M of them fall on each clip, so every clip is kept with probability exactly M / N.
    phase = torch.randint(num_clips, (num_videos, 1), generator=generator, device=generator.device)
    steps = torch.arange(count, device=generator.device) * num_clips
    return (steps + phase) // count


def _block(num_videos: int, num_clips: int, count: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(
        num_clips - count + 1, (num_videos, 1), generator=generator, device=generator.device
    )
    return first + torch.arange(count, device=generator.device)


def sample_clips(
    num_videos: int, num_clips: int, ratio: float, *, strategy: Strategy, generator: torch.Generator
) -> Tensor:
    """Draw the clips of each video whose gradient is computed; a draw of its own for every video.

    ratio: share of the clips kept, 0 < ratio <= 1; M = max(1, ceil(ratio * N)).
    strategy:
        "random"   M clips without replacement;
        "uniform"  M clips spread evenly, moved by a random phase;
        "block"    M neighbouring clips.
    "random" and "uniform" keep every clip with probability M / N; "block" keeps those at the ends less often.

    Returns (B, M) int64 on the generator's device, rising and without repeats in each row.
    """
    draw = {"random": _random, "uniform": _uniform, "block": _block}.get(strategy)
    if draw is None:
        raise ValueError(f"clip sampling strategy: got {strategy!r}, want 'random', 'uniform' or 'block'")
    return draw(num_videos, num_clips, num_kept(num_clips, ratio), generator)


def sample_labelled_clips(
    num_clips: int, ratio: float, gt_segments: Sequence[Tensor], *, num_steps: int, generator: torch.Generator
) -> Tensor:
    """Draw clips inside and around the annotated actions first, then others; M as in `sample_clips`.

    gt_segments: per video (A, 2) start and end in the T = num_steps steps of its clips. Around: within half
    an action's length before and after it. A video without actions gets a random draw. Clips far from any
    action are kept where too few others are: the gradient is biased towards the actions.

    Returns (B, M) int64 on the generator's device, rising and without repeats in each row.
    """
    count, device = num_kept(num_clips, ratio), generator.device
    edges = torch.arange(num_clips + 1, device=device) * (num_steps / num_clips)
    near = torch.zeros(len(gt_segments), num_clips, dtype=torch.bool, device=device)
    for i, segments in enumerate(gt_segments):
        start, end = segments.reshape(-1, 2).unbind(1)
        around = (end - start) * AROUND
        overlaps = (edges[:-1, None] < end + around) & (edges[1:, None] > start - around)  # (N, A)
        near[i] = overlaps.any(1)
    order = torch.rand(near.shape, generator=generator, device=device) + near
    return order.argsort(dim=1, descending=True)[:, :count].sort(dim=1).values
