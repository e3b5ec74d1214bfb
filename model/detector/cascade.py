"""What detectors with a cascade share: all candidates through all of its stages, the sum of its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from .heads import StageOutput
from .proposals import candidate_proposals
from .settings import LossWeights

Refine = Callable[[StageOutput, Tensor], Tensor]  # a stage's output and its anchors -> the next one's anchors


def total_loss(parts: Iterable[tuple[str, Tensor]], weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the parts, and the weighted parts by name, detached; stages' of one name add up."""
    sums: dict[str, Tensor] = {}
    for name, value in parts:
        sums[name] = sums[name] + value if name in sums else value
    weighted = {name: getattr(weights, name) * value for name, value in sums.items()}
    return reduce(torch.add, weighted.values()), {name: value.detach() for name, value in weighted.items()}


def score_all(
    stages: Iterable[nn.Module],
    refine: Refine,
    x: Tensor,
    step_scores: Tensor | None,
    *,
    num_steps: int,
    at_once: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Refine and score all P = T (T + 1) / 2 candidates, `at_once` of them at a time.

    x: (B, neck_dim, T) and step_scores, as the stages take them. Returns segments (B, P, 2), quality (B, P)
    and class scores (B, P, K), means over the stages.
    """
    candidates = candidate_proposals(num_steps, device=x.device)
    chunks = [
        _score(stages, refine, x, step_scores, chunk.expand(len(x), -1, -1))
        for chunk in torch.split(candidates, at_once)
    ]
    segments, quality, class_scores = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
    return segments, quality, class_scores


def _score(
    stages: Iterable[nn.Module], refine: Refine, x: Tensor, step_scores: Tensor | None, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments (B, p, 2), quality (B, p) and class scores (B, p, K) from p of the proposals (B, p, 2)."""
    refined, tiou_scores, class_scores = [], [], []
    for stage in stages:
        output = stage(x, step_scores, anchors)
        anchors = refine(output, anchors)
        refined.append(anchors)
        tiou_scores.append(output.tiou_logits.sigmoid())
        class_scores.append(output.class_logits.sigmoid())
    segments = torch.stack(refined).mean(0)
    quality = torch.stack(tiou_scores).mean(0).prod(-1)  # tIoU class x tIoU, as ETAD
    return segments, quality, torch.stack(class_scores).mean(0)
