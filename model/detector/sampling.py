"""Draws the proposals that a training step is trained on, out of the dense map of candidates.

Random, grid and block after ETAD (Liu et al., CVPRW 2023); the others are ours. Each draws exactly as many
for every video, without replacement. Everything is in feature steps, and on the CPU.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

import torch
from torch import Tensor

from ..diversity import farthest_points, sample_kdpp
from ..segments import pairwise_tiou
from .ground_truth import PaddedActions
from .proposals import candidate_proposals
from .settings import DetectorSettings

POOL = 4  # farthest: candidates, drawn at random, for each proposal that is kept
TILE, PER_TILE = 32, 4  # dpp: neighbouring candidates that are drawn from at once, and about how many of them


def in_order(segments: Tensor, num_steps: int) -> Tensor:
    """(B, P, 2), by start, then end: the candidates' order."""
    order = (segments[..., 0] * (num_steps + 1) + segments[..., 1]).argsort(1)
    return segments.gather(1, order[..., None].expand(-1, -1, 2))


def random_proposals(
    candidates: Tensor, num_videos: int, count: int, *, generator: torch.Generator
) -> Tensor:
    """Each candidate as likely (ETAD), drawn anew for every video: (P, 2) -> (B, count, 2), in order."""
    draws = [torch.randperm(len(candidates), generator=generator)[:count] for _ in range(num_videos)]
    return candidates[torch.stack(draws).sort(1).values]


def balanced_proposals(
    candidates: Tensor,
    gt_segments: Tensor,
    gt_mask: Tensor,
    count: int,
    *,
    share: float,
    min_tiou: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw about `share` of the samples around the annotated actions, as many for each; the rest among all.

    candidates: (P, 2); gt_segments: (B, A, 2); gt_mask: (B, A) bool. Returns (B, count, 2), without
    replacement, in the candidates' order. Around: tIoU of at least `min_tiou` with the action. In a uniform
    draw a short action overlaps a handful of candidates, often none of the sampled ones; here every action
    has about the same number of proposals in every iteration. A video without actions gets a uniform draw.
    """
    near = (pairwise_tiou(candidates, gt_segments) >= min_tiou) & gt_mask[:, None]  # (B, P, A)
    per_action = near / near.sum(1, keepdim=True).clamp(min=1)
    actions = gt_mask.sum(1).clamp(min=1)[:, None]
    weights = share * per_action.sum(2) / actions + (1 - share) / len(candidates)
    chosen = torch.multinomial(weights, count, generator=generator)
    return candidates[chosen.sort(1).values]


def grid_proposals(num_steps: int, count: int) -> Tensor:
    """ETAD's lattice: starts and lengths at equal steps, the same in every draw. Returns (count, 2).

    The steps are the largest that give `count` proposals; what they give more is left out evenly.
    """
    side = math.ceil((math.sqrt(8 * count + 1) - 1) / 2 - 1e-9)  # side (side + 1) / 2 >= count
    i, j = torch.triu_indices(side, side)
    start, length = i * num_steps // side, 1 + (j - i) * num_steps // side
    kept = torch.arange(count) * len(i) // count
    return torch.stack([start, start + length], -1)[kept].float()


def block_proposals(candidates: Tensor, num_videos: int, count: int, *, generator: torch.Generator) -> Tensor:
    """A square of the map, of starts and lengths, around a random candidate: (P, 2) -> (B, count, 2).

    At the border of the map it is cut, and larger by as much.
    """
    start, length = candidates[:, 0], candidates[:, 1] - candidates[:, 0]
    centre = torch.randint(len(candidates), (num_videos, 1), generator=generator)
    distance = torch.maximum((start - start[centre]).abs(), (length - length[centre]).abs())
    nearest = distance.argsort(dim=1, stable=True)[:, :count]
    return candidates[nearest.sort(1).values]


def farthest_proposals(
    candidates: Tensor, num_videos: int, count: int, *, generator: torch.Generator
) -> Tensor:
    """Farthest points of the map, by start and end, out of POOL x count random candidates."""
    pool = random_proposals(candidates, num_videos, min(len(candidates), POOL * count), generator=generator)
    chosen = farthest_points(pool.double(), count, generator=generator)
    return pool.gather(1, chosen[..., None].expand(-1, -1, 2))


def _along_the_map(segments: Tensor) -> Tensor:
    """(B, P, 2) in Z-order of start and end, so that neighbours in a row are neighbours on the map."""
    start, end = segments.long().unbind(-1)
    code = torch.zeros_like(start)
    for bit in range(24):
        code |= (start >> bit & 1) << 2 * bit | (end >> bit & 1) << 2 * bit + 1
    return segments.gather(1, code.argsort(1)[..., None].expand(-1, -1, 2))


def dpp_proposals(candidates: Tensor, num_videos: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Proposals that overlap much seldom come together: a k-DPP on the tIoU in each part of the map.

    A k-DPP on the whole map would take the cube of its size; far apart proposals do not overlap anyway.
    """
    tiles = math.ceil(count / PER_TILE)
    pool = random_proposals(candidates, num_videos, min(len(candidates), TILE * tiles), generator=generator)
    pool = _along_the_map(pool)
    # Sizes and counts differ by one at most, the larger ones come first: equal tiles are drawn at once.
    changes = sorted({0, pool.shape[1] % tiles, count % tiles, tiles})
    drawn, first = [], 0
    for tile, next_tile in pairwise(changes):
        size, kept = ((total + tiles - 1 - tile) // tiles for total in (pool.shape[1], count))
        last = first + size * (next_tile - tile)
        of_tiles = pool[:, first:last].reshape(-1, size, 2)
        chosen = sample_kdpp(pairwise_tiou(of_tiles, of_tiles).double(), kept, generator=generator)
        of_tiles = of_tiles.gather(1, chosen[..., None].expand(-1, -1, 2))
        drawn.append(of_tiles.reshape(num_videos, -1, 2))
        first = last
    return torch.cat(drawn, 1)


def _equal_shares(sizes: list[int], count: int, generator: torch.Generator) -> list[int]:
    """How many of `count` each of the groups gives: as many as the others or all it has; the rest by lot."""
    level = bisect_right(range(count + 1), count, key=lambda n: sum(min(size, n) for size in sizes)) - 1
    shares = [min(size, level) for size in sizes]
    larger = [i for i, size in enumerate(sizes) if size > level]
    for i in torch.randperm(len(larger), generator=generator)[: count - sum(shares)].tolist():
        shares[larger[i]] += 1
    return shares


def scale_balanced_proposals(
    candidates: Tensor, num_videos: int, count: int, *, generator: torch.Generator
) -> Tensor:
    """As many of each octave of lengths (1, 2 to 3, 4 to 7, ... steps), random within it: (B, count, 2)."""
    octave = torch.frexp(candidates[:, 1] - candidates[:, 0]).exponent
    groups = [(octave == number).nonzero()[:, 0] for number in torch.unique(octave)]
    drawn = []
    for _ in range(num_videos):
        shares = _equal_shares([len(group) for group in groups], count, generator)
        parts = [
            group[torch.randperm(len(group), generator=generator)[:share]]
            for group, share in zip(groups, shares, strict=True)
        ]
        drawn.append(torch.cat(parts).sort().values)
    return candidates[torch.stack(drawn)]


def draw_proposals(
    settings: DetectorSettings, ratio: float, actions: PaddedActions, generator: torch.Generator
) -> Tensor:
    """The proposals of one iteration at a ratio, drawn for every video on its own, on the CPU.

    As detector.proposal_sampling says. Returns (B, count, 2), by start, then end.
    """
    strategy, num_steps = settings.proposal_sampling, settings.num_steps
    candidates, count = candidate_proposals(num_steps), settings.num_samples_at(ratio)
    if strategy == "balanced":
        return balanced_proposals(
            candidates,
            actions.segments,
            actions.mask,
            count,
            share=settings.balanced_share,
            min_tiou=settings.balanced_tiou,
            generator=generator,
        )
    if strategy == "grid":
        return in_order(grid_proposals(num_steps, count).expand(len(actions.mask), -1, -1), num_steps)
    draw = {
        "random": random_proposals,
        "block": block_proposals,
        "farthest": farthest_proposals,
        "dpp": dpp_proposals,
        "scale_balanced": scale_balanced_proposals,
    }[strategy]
    drawn = draw(candidates, len(actions.mask), count, generator=generator)
    return drawn if strategy == "random" else in_order(drawn, num_steps)
