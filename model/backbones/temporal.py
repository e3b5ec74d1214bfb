"""Lets a network for images see motion: a shift along time in each of its residual blocks, no parameters.

J. Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, as tsm.py has it,
for networks that nobody prepared: one eighth of the channels that enter the first convolution or linear map
of a residual block comes from the next frame, one eighth from the previous. Blocks that change the shape stay
as they are. The modules keep their names and parameters: their class becomes one derived from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..tracing.example import Example
from ..tracing.find import residual_names
from ..tracing.graph import OneOperation
from .batch_norm import KeepsStatistics
from .tsm import temporal_shift

DIVISOR = 8  # one part of the channels comes from the next frame, one from the previous


@dataclass
class FrameCount:
    """How many frames a clip has that goes through a network frame by frame, shared by its shifts."""

    frames: int = 1


def shift_frames(x: Tensor, frames: int, channel_dim: int) -> Tensor:
    """x: (n frames, ...), with its channels at `channel_dim`. Returns the same shape, channels shifted."""
    clips = torch.unflatten(x, 0, (-1, frames)).movedim(
        channel_dim + 1 if channel_dim > 0 else channel_dim, 2
    )
    shifted = temporal_shift(clips.reshape(*clips.shape[:3], -1, 1), DIVISOR)
    shifted = shifted.reshape(clips.shape).movedim(2, channel_dim + 1 if channel_dim > 0 else channel_dim)
    return shifted.flatten(0, 1)


class _Shifted(OneOperation):
    """A layer that sees its input shifted along time."""

    frame_count: FrameCount

    def forward(self, x: Tensor) -> Any:
        channel_dim = 1 if isinstance(self, nn.Conv2d) else -1
        return super().forward(shift_frames(x, self.frame_count.frames, channel_dim))


@cache
def _derived(first: Any, of: Any) -> Any:
    """A class with the forward of `first` around that of `of`."""
    return type(of.__name__, (first, of), {"__module__": of.__module__})


def add_shifts(network: nn.Module, example: Example, frame_count: FrameCount) -> list[str]:
    """Shift the first layer of each residual block that sees whole frames; returns the layers' names.

    example: a batch of at least two images, which is run.
    """
    found = []
    for layers in _layers_of_blocks(network, example):
        for name in layers:
            module: Any = network.get_submodule(name)
            if not isinstance(module, _Shifted):
                kind: Any = type(module)
                module.__class__ = _derived(_Shifted, kind)
                module.frame_count = frame_count
                found.append(name)
            break
    return found


def _layers_of_blocks(network: nn.Module, example: Example) -> Iterable[list[str]]:
    """For each residual block, its convolutions and linear maps that see whole frames, as they are called."""
    images = next(value for value in (*example.args, *example.kwargs.values()) if isinstance(value, Tensor))
    calls: list[str] = []

    def note(name: str, x: Tensor) -> None:
        if len(x) == len(images) and x.dim() > 1:
            calls.append(name)

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hook = module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
                stack.callback(hook.remove)
        with torch.no_grad():
            network(*example.args, **example.kwargs)
    for block in residual_names(network, example):
        yield [name for name in calls if name.startswith(f"{block}.")]


def keep_statistics(network: nn.Module) -> None:
    """Let batch norms of any class keep float32 statistics beside weights of another type."""
    module: Any
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, KeepsStatistics):
            kind: Any = type(module)
            module.__class__ = _derived(KeepsStatistics, kind)
