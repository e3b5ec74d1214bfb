"""Whether an encoder can run again in the backward pass as it ran: no more than replays restore is in use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_CHECKED: WeakSet[nn.Module] = WeakSet()


def python_random_state() -> tuple[Any, ...]:
    """The state of the generators that no recomputation replays: Python's and NumPy's global ones."""
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """With their versions, but for those of batch norms, which `frozen_statistics` holds."""
    return {
        f"{name}.{key}".strip("."): (buffer, buffer._version)
        for name, part in module.named_modules()
        if not isinstance(part, _BatchNorm)
        for key, buffer in part.named_buffers(recurse=False)
    }


def _is_written(before: tuple[Tensor, int], now: tuple[Tensor, int]) -> bool:
    """Whether a buffer has other values. (One of another shape is a table, made for another size.)"""
    (old, old_version), (new, version) = before, now
    if old is new:
        return old_version != version
    return old.shape == new.shape and not torch.equal(old, new)


@contextmanager
def checked_at_first(encoder: nn.Module, advice: str) -> Iterator[None]:
    """ValueError if calls of `encoder` inside change its buffers, or draw numbers that are not replayed.

    Viewed in its first training calls alone, for other threads draw such numbers, too, now and then.
    """
    if encoder in _CHECKED:
        yield
        return
    buffers, numbers = _buffers(encoder), python_random_state()
    yield
    again = "when it runs again in the backward pass"
    if python_random_state() != numbers:
        raise ValueError(
            f"encoder: its forward draws from Python's or NumPy's random numbers, which differ {again}; "
            f"want torch's, or {advice}"
        )
    now = _buffers(encoder)
    written = [key for key, was in buffers.items() if key in now and _is_written(was, now[key])]
    if written:
        raise ValueError(
            f"encoder: its forward writes to {', '.join(written[:3])}, which it would do once more {again}; "
            f"want {advice}"
        )
    if encoder.training:
        _CHECKED.add(encoder)
