"""Draws subsets whose members differ from each other: farthest points, and k-DPPs.

Farthest points: Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985. k-DPP: Kulesza
and Taskar, "k-DPPs: Fixed-Size Determinantal Point Processes", ICML 2011. Everything is on the CPU, in
float64, for many sets at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_EIGENVALUE = 1e-10  # share of the largest: keeps a kernel of low rank able to give any number


def pairwise_squares(points: Tensor) -> Tensor:
    """Squared Euclidean distances: (B, P, F) -> (B, P, P), 0 on the diagonal."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def farthest_points(points: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """A random first point, then always the one farthest from those there are.

    points: (B, P, F), Euclidean distances; 1 <= count <= P. Returns (B, count) int64, rising and without
    repeats. Takes count steps over P points.
    """
    points = points.nan_to_num()
    rows = torch.arange(len(points))
    last = torch.randint(points.shape[1], (len(points),), generator=generator)
    chosen, distance = [last], points.new_full(points.shape[:2], torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (points - points[rows, last][:, None]).square().sum(2))
        distance[rows, last] = -1.0  # equal points have distance 0, and are chosen before any a second time
        last = distance.argmax(1)
        chosen.append(last)
    return torch.stack(chosen, 1).sort(1).values


def similarity_kernel(points: Tensor) -> Tensor:
    """exp(-d^2 / (2 m^2)), m the median distance: (B, P, F) -> (B, P, P); 1 where all points are equal."""
    squares = pairwise_squares(points.nan_to_num())
    others = ~torch.eye(points.shape[1], dtype=torch.bool)
    if not others.any():
        return torch.ones_like(squares)
    median = squares[:, others].median(1).values[:, None, None]
    return torch.exp(-squares / (2 * median).clamp(min=torch.finfo(squares.dtype).tiny))


def _log_elementary(log_values: Tensor, count: int) -> Tensor:
    """Logarithms of the elementary symmetric polynomials e_0 .. e_count of the first 0 .. m values.

    log_values: (G, m). Returns (m + 1, G, count + 1).
    """
    table = log_values.new_full((log_values.shape[1] + 1, len(log_values), count + 1), -torch.inf)
    table[:, :, 0] = 0.0
    for j, log_value in enumerate(log_values.unbind(1)):
        table[j + 1, :, 1:] = torch.logaddexp(table[j, :, 1:], log_value[:, None] + table[j, :, :-1])
    return table


def _select_eigenvectors(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of the eigenvalues (G, m), a set as likely as its product. Returns (G, count), falling."""
    log_values = values.log()
    table, rows = _log_elementary(log_values, count), torch.arange(len(values))
    draws = torch.rand(values.shape, dtype=values.dtype, generator=generator).log()
    left = torch.full((len(values),), count)
    selected = torch.zeros(values.shape, dtype=torch.bool)
    for j in reversed(range(values.shape[1])):
        chance = log_values[:, j] + table[j, rows, (left - 1).clamp(min=0)] - table[j + 1, rows, left]
        selected[:, j] = (left > 0) & (draws[:, j] < chance)
        selected[:, j] |= left > j  # all that are left; rounding must not lose one
        left = left - selected[:, j].long()
    return selected.to(values.dtype).topk(count, 1).indices


def sample_kdpp(kernel: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw `count` items of each set: Y with probability proportional to det(kernel[Y, Y]).

    kernel: (G, m, m) similarities, symmetric and positive semi-definite, float64; 1 <= count <= m. Returns
    (G, count) int64, rising and without repeats.
    """
    values, vectors = torch.linalg.eigh(kernel)
    least = values[:, -1:].clamp(min=torch.finfo(values.dtype).tiny) * _LEAST_EIGENVALUE
    selected = _select_eigenvectors(torch.maximum(values, least), count, generator)
    basis = vectors.gather(2, selected[:, None].expand(-1, vectors.shape[1], -1))  # (G, m, count)
    # The chosen items span more and more of the basis; each next one is drawn by what they leave of it.
    remaining, rows = basis.square().sum(2), torch.arange(len(kernel))
    steps: list[Tensor] = []
    chosen: list[Tensor] = []
    for _ in range(count):
        item = torch.multinomial(remaining.clamp(min=0), 1, generator=generator)[:, 0]
        along = (basis @ basis[rows, item][:, :, None])[:, :, 0]  # (G, m)
        for step in steps:
            along = along - step * step[rows, item][:, None]
        step = along / remaining[rows, item].sqrt()[:, None]
        remaining = remaining - step.square()
        chosen.append(item)
        steps.append(step)
        remaining[rows[:, None], torch.stack(chosen, 1)] = 0.0
    return torch.stack(chosen, 1).sort(1).values
