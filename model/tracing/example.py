"""An input for a network that nobody gave one for: from its own description, else from its first layer.

It is only run, to see in which order blocks are called, with what, and how many bytes each keeps; so any
input that the network accepts will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .observe import undisturbed

N = 2  # batch norms in training want more than one value per channel
SIZES = (64, 224, 32, 256)  # pixels
CLIPS = ((8, 64), (16, 112), (16, 224), (32, 224))  # frames, pixels


@dataclass(frozen=True)
class Example:
    """The arguments of one call of the network."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(given: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Example:
        """What the caller gave: one tensor, several arguments, or keyword arguments."""
        if isinstance(given, Mapping):
            return Example((), dict(given))
        return Example((given,) if isinstance(given, Tensor) else tuple(given))


def guess_example(network: nn.Module) -> Example | None:
    """The first of some inputs that the network accepts; None if it accepts none."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    if parameter is None or parameter.is_meta:
        return None
    for example in _guesses(network, parameter):
        try:
            with undisturbed(network, parameter.device), torch.no_grad():
                network(*example.args, **example.kwargs)
        except Exception:  # whatever foreign code raises for an input that is none of its own
            continue
        return example
    return None


def _guesses(network: nn.Module, parameter: Tensor) -> Iterator[Example]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in _shapes(network):
        if name is not None and "ids" in name:
            values = torch.randint(0, 10, shape, generator=generator).to(parameter.device)
        else:
            values = torch.randn(shape, generator=generator).to(parameter)
        yield Example((values,)) if name is None else Example((), {name: values})


def _pair(size: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    height, width = (int(value) for value in list(size)[-2:])
    return height, width


def _shapes(network: nn.Module) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """Names of arguments (None: the first) with shapes, likely ones first."""
    config = getattr(network, "config", None)
    name = getattr(network, "main_input_name", None)
    if config is not None and isinstance(name, str):
        yield from _of_config(config, name)
    sized = [getattr(getattr(network, "patch_embed", None), "img_size", None)]
    described = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    sized.append(described.get("input_size") if isinstance(described, Mapping) else None)
    sizes = [_pair(size) for size in sized if size is not None]
    yield from ((None, shape) for shape in _of_first_layer(network, sizes))


def _of_config(config: Any, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's description."""
    if "ids" in name:
        yield name, (N, 8)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    sizes = [_pair(size)] if isinstance(size, int | list | tuple) else [(s, s) for s in SIZES]
    channels = int(getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3)
    described = (getattr(config, key, None) for key in ("num_frames", "frames_per_clip"))
    frames = [value for value in described if isinstance(value, int)]
    for pixels in sizes:
        for value in frames:
            yield name, (N, value, channels, *pixels)
        yield name, (N, channels, *pixels)


def _of_first_layer(network: nn.Module, sizes: list[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next((module for module in network.modules() if isinstance(module, layers)), None)
    if isinstance(first, nn.Conv3d):
        yield from ((N, first.in_channels, frames, s, s) for frames, s in CLIPS)
    elif isinstance(first, nn.Conv2d):
        yield from ((N, first.in_channels, *pixels) for pixels in [*sizes, *((s, s) for s in SIZES)])
    elif isinstance(first, nn.Conv1d):
        yield from ((N, first.in_channels, s) for s in SIZES)
    elif isinstance(first, nn.Linear):
        yield from ((N, first.in_features), (N, 4, first.in_features), (N, 4, 4, first.in_features))
