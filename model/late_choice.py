"""Chooses the clips whose gradient is computed by what the network makes of them, once it has.

"farthest" and "dpp" read the features, so the choice falls at the end of the encoder's forward;
"top_gradient" and "importance" read the gradient of the features, so it falls in the backward, and the frames
of all clips are kept until then. The choice is made on the CPU: it waits for the device, once a backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .diversity import farthest_points, sample_kdpp, similarity_kernel

LateStrategy = Literal["farthest", "dpp", "top_gradient", "importance"]

_CERTAIN = 1 - 1e-9  # a clip as likely as that is always kept: no rounding can then draw one twice


@dataclass(frozen=True)
class ChosenClips:
    """The clips of each video whose gradient is computed; both on the CPU."""

    clips: Tensor  # (B, M) int64, rising and without repeats
    weights: Tensor | None = None  # (B, M) float64, how often each counts; None: the caller's scale


def inclusion_probabilities(sizes: Tensor, count: int) -> Tensor:
    """How likely each of N items is among `count` ones, in proportion to its size, but at most 1.

    sizes: (N,) float64, at least 0; 1 <= count <= N. Returns (N,) that sum to `count`. Items of size 0 are
    drawn if there are too few others. Sizes that are not finite count as the only ones, so that a gradient
    that is not finite is never left out.
    """
    sizes = sizes.nan_to_num(nan=torch.inf, posinf=torch.inf)
    sizes = sizes.isinf().to(sizes) if sizes.isinf().any() else sizes / sizes.max().clamp(min=1e-300)
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while (left := count - certain.sum()) > 0:
        others = sizes.masked_fill(certain, 0.0)
        if not others.any():
            others = (~certain).to(sizes)
        share = left * others / others.sum()
        likely = share >= _CERTAIN
        if not likely.any():
            return share + certain
        certain |= likely
    return certain.to(sizes)


def systematic_draw(probabilities: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw as many items as the probabilities sum to, each with its own; items in a row seldom together.

    probabilities: (N,) of `inclusion_probabilities`. Returns (M,) int64, rising and without repeats. Madow,
    "On the Theory of Systematic Sampling, II", 1949: equal steps along the summed probabilities, from a
    random start.
    """
    certain = probabilities >= 1
    others = probabilities.masked_fill(certain, 0.0)
    count = round(others.sum().item())
    start = torch.rand(1, dtype=torch.float64, generator=generator) * (1 - 1e-12)
    ends = others.cumsum(0)
    points = (start + torch.arange(count)) * (ends[-1] / max(count, 1))
    drawn = torch.searchsorted(ends, points, right=True)
    return certain.index_fill(0, drawn, True).nonzero()[:, 0]


def _by_importance(norms: Tensor, count: int, generator: torch.Generator) -> ChosenClips:
    """norms: (B, N). A clip counts 1 / (probability of being kept) times: the mean is the full gradient."""
    probabilities = torch.stack([inclusion_probabilities(row, count) for row in norms])
    clips = torch.stack([systematic_draw(row, generator=generator) for row in probabilities])
    return ChosenClips(clips, 1 / probabilities.gather(1, clips))


@dataclass(frozen=True)
class LateChoice:
    """Stands for clips that are not chosen yet: `count` of each video, without replacement."""

    strategy: LateStrategy
    count: int  # M
    generator: torch.Generator  # on the CPU; read when the clips are chosen

    @property
    def by_gradient(self) -> bool:
        """Whether the gradient of the features decides, not the features."""
        return self.strategy in ("top_gradient", "importance")

    def choose(self, values: Tensor) -> ChosenClips:
        """values: (B, N, F), the features of each clip or their gradient.

        strategy:
            "farthest"      a random clip, then always the one whose features are farthest from the kept ones;
            "dpp"           a k-DPP: clips with similar features seldom come together;
            "top_gradient"  the M clips with the largest gradients: biased, the small ones never count;
            "importance"    a clip is drawn in proportion to the norm of its gradient, and counts for as
                            many as it stands for: unbiased.
        """
        num_videos, num_clips = values.shape[:2]
        if self.count >= num_clips:
            return ChosenClips(torch.arange(num_clips).expand(num_videos, -1))
        if self.by_gradient:
            norms = torch.linalg.vector_norm(values.double(), dim=2).cpu()
            if self.strategy == "importance":
                return _by_importance(norms, self.count, self.generator)
            largest = norms.argsort(dim=1, descending=True, stable=True)[:, : self.count]
            return ChosenClips(largest.sort(1).values)
        features = values.cpu().double()
        if self.strategy == "farthest":
            return ChosenClips(farthest_points(features, self.count, generator=self.generator))
        kernel = similarity_kernel(features)
        return ChosenClips(sample_kdpp(kernel, self.count, generator=self.generator))


def late_choice(strategy: LateStrategy, count: int, *, generator: torch.Generator) -> LateChoice:
    """A choice whose random numbers are its own: `generator` (CPU) gives their seed now and may go on."""
    seed = torch.randint(2**62, (1,), generator=generator)
    return LateChoice(strategy, count, torch.Generator().manual_seed(int(seed)))
