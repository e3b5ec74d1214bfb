"""Brings what a library's network returns into one form: feature maps, whatever their layout was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .described import Described

WANTED = "want maps, tokens or vectors of features"


def main_output(returned: object) -> Tensor:
    """The tensor that a network returns; of Hugging Face's, the last hidden state. ValueError without one."""
    if isinstance(returned, Mapping) and isinstance(returned.get("last_hidden_state"), Tensor):
        returned = returned["last_hidden_state"]
    if not isinstance(returned, Tensor):
        raise ValueError(f"returns a {type(returned).__name__}, {WANTED}")
    return returned


def number_of_features(y: Tensor, candidates: Sequence[int]) -> int:
    """D of an output: the first candidate that is one of its sizes; without candidates the likely one."""
    if y.dim() < 2:
        raise ValueError(f"returns a tensor of shape {tuple(y.shape)}, {WANTED}")
    fitting = [number for number in candidates if number in (y.shape[1], y.shape[-1])]
    fitting += [number for number in candidates if y.dim() == 2 and y.shape[1] % number == 0]  # of (n, D t)
    if fitting:
        return fitting[0]
    return y.shape[-1] if y.dim() == 3 else y.shape[1]


def image_maps(y: Tensor, features: int, described: Described) -> Tensor:
    """y: of images, (n, D), (n, tokens, D), (n, D, h, w) or (n, h, w, D). Returns (n, D, h, w).

    Tokens are one column, without those that stand for no place.
    """
    if y.dim() == 2 and y.shape[1] == features:
        return y[:, :, None, None]
    if y.dim() == 3 and y.shape[2] == features:
        return y[:, described.prefix_tokens :].transpose(1, 2)[..., None]
    if y.dim() == 4 and y.shape[1] == features:
        return y
    if y.dim() == 4 and y.shape[3] == features:
        return y.movedim(3, 1)
    raise ValueError(f"returns a tensor of shape {tuple(y.shape)}, {WANTED}, {features} of them")


def clip_maps(y: Tensor, features: int, described: Described, *, frames: int) -> Tensor:
    """y: of clips, (n, D t), (n, tokens, D), (n, D, t, h, w) or (n, t, h, w, D). Returns (n, D, t, h, w).

    frames: of each clip. Tokens whose steps are not known are one step.
    """
    if y.dim() == 2 and y.shape[1] % features == 0:
        return torch.unflatten(y, 1, (features, -1))[..., None, None]
    if y.dim() == 3 and y.shape[2] == features:
        return _of_tokens(y[:, described.prefix_tokens :].transpose(1, 2), described, frames)
    if y.dim() == 5 and y.shape[1] == features:
        return y
    if y.dim() == 5 and y.shape[4] == features:
        return y.movedim(4, 1)
    raise ValueError(f"returns a tensor of shape {tuple(y.shape)}, {WANTED}, {features} of them")


def _of_tokens(y: Tensor, described: Described, frames: int) -> Tensor:
    """(n, D, tokens) -> (n, D, t, tokens / t, 1)."""
    steps = 1 if described.step_frames is None else max(frames // described.step_frames, 1)
    if y.shape[2] % steps:
        raise ValueError(f"returns {y.shape[2]} tokens, want a multiple of its {steps} steps")
    if described.steps_order == "slow":
        return torch.unflatten(y, 2, (steps, -1))[..., None]
    return torch.unflatten(y, 2, (-1, steps)).transpose(2, 3)[..., None]
