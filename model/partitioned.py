"""Parameters that ZeRO-3 has partitioned: it gives each an id of its own, `ds_id`.

It reduces a gradient as soon as autograd has accumulated it, unless `ds_grad_is_ready` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds any of the parameters."""
    return any(hasattr(p, "ds_id") for p in module.parameters())


@contextmanager
def held_back(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, ZeRO-3 does not reduce the gradients of a module, until what is yielded is called."""
    partitioned: list[Any] = [p for p in module.parameters() if hasattr(p, "ds_id")]
    ready = [getattr(p, "ds_grad_is_ready", True) for p in partitioned]

    def let_go() -> None:
        for parameter, before in zip(partitioned, ready, strict=True):
            parameter.ds_grad_is_ready = before

    for parameter in partitioned:
        parameter.ds_grad_is_ready = False
    try:
        yield let_go
    finally:
        let_go()
