"""The points of the pyramid, and which action each of them is trained to detect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ground_truth import PaddedActions
from .settings import ActionFormerSettings

_SAME_LENGTH = 1e-3  # steps; actions of the least length, up to this, are all a point's


@dataclass(frozen=True)
class Points:
    """All points of all levels, P of them; positions and distances in steps."""

    position: Tensor  # (P,)
    stride: Tensor  # (P,) steps from a point to the next of its level
    min_distance: Tensor  # (P,) the farther end of its action is at least as far
    max_distance: Tensor  # (P,) and at most as far

    def segments(self, distances: Tensor) -> Tensor:
        """The segments (..., P, 2) whose ends are this far (..., P, 2), in strides of their points."""
        away = distances * self.stride[:, None]
        return torch.stack([self.position - away[..., 0], self.position + away[..., 1]], -1)


def make_points(
    num_steps: int,
    settings: ActionFormerSettings,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Points:
    """The points of T = num_steps steps, level by level."""
    limits = [0.0, *settings.max_distances, 10_000.0]
    rows = []
    for level in range(settings.num_levels):
        position = torch.arange(0, num_steps, 2**level, dtype=dtype) + settings.point_offset
        rows.append([position, *(torch.full_like(position, x) for x in (2**level, *limits[level:][:2]))])
    columns = (torch.cat(parts).to(device, non_blocking=True) for parts in zip(*rows, strict=True))
    return Points(*columns)


def assign_actions(
    points: Points, actions: PaddedActions, num_classes: int, *, centre_radius: float | None
) -> tuple[Tensor, Tensor]:
    """What each point is trained towards.

    A point belongs to the shortest action that it lies in, near whose centre it is (within `centre_radius`
    strides, None: anywhere) and whose farther end is at a distance that its level takes; to several if they
    are as short. Returns classes (B, P, K) in {0, 1}, and the distances (B, P, 2) to start and end in strides
    of the point, positive where a class is 1 and without meaning elsewhere.
    """
    position, stride = points.position[:, None], points.stride[:, None]
    starts, ends = (side[:, None] for side in actions.segments.unbind(-1))  # (B, 1, A)
    distances = torch.stack([position - starts, ends - position], -1)  # (B, P, A, 2)
    near = distances.amin(-1) > 0
    if centre_radius is not None:
        centres, radius = (starts + ends) / 2, stride * centre_radius
        first, last = torch.maximum(centres - radius, starts), torch.minimum(centres + radius, ends)
        near = (position > first) & (position < last)
    farther = distances.amax(-1)
    of_level = (farther >= points.min_distance[:, None]) & (farther <= points.max_distance[:, None])
    lengths = torch.where(near & of_level & actions.mask[:, None], ends - starts, torch.inf)  # (B, P, A)
    shortest, chosen = lengths.min(2)
    belongs = (lengths <= shortest[..., None] + _SAME_LENGTH) & lengths.isfinite()
    classes = distances.new_zeros(*shortest.shape, num_classes)
    classes = classes.scatter_reduce(
        2, actions.labels[:, None].expand(lengths.shape), belongs.to(classes.dtype), "amax"
    )
    to_ends = distances.gather(2, chosen[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return classes, to_ends / stride
