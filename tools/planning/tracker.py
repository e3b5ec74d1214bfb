"""Counts the bytes of tensors, real or fake, by what they are for, and the moment when most were alive.

torch.distributed._tools.mem_tracker counts the same (a test compares the two peaks), but knows other parts:
it calls whatever runs again in the backward an activation. And it copies its books for every module at every
operator, which makes a fake step 13 times as slow.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Block:
    """One storage: its bytes and what it is for, which may be found out later than it was made."""

    size: int
    part: str


class PartBytes(TorchDispatchMode):
    """Counts the storages that operators make inside, each under the `part` that is set when it is made.

    `peak` is in bytes. Storages from outside count from `adopt` on.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.now, self.peak = 0, 0
        self.alive: dict[int, Block] = {}
        self._at_peak: list[Block] = []
        self._rising = False  # now is the peak, and _at_peak does not show it yet

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._born(leaf.untyped_storage(), self.part)
        return result

    def adopt(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors made elsewhere, under `part`; those known already move there."""
        for tensor in tensors:
            self._born(tensor.untyped_storage(), part).part = part

    def move(self, source: str, target: str) -> None:
        """What is alive of one part belongs to another from now on, also in the picture of the peak."""
        for block in self.alive.values():
            if block.part == source:
                block.part = target

    def at_peak(self) -> Counter[str]:
        """Bytes by part at the moment when most were alive."""
        self._keep_picture()
        sizes: Counter[str] = Counter()
        for block in self._at_peak:
            sizes[block.part] += block.size
        return sizes

    def forget_peak(self) -> None:
        """Start looking for a new peak from here."""
        self.peak, self._rising = self.now, True

    def _born(self, storage: torch.UntypedStorage, part: str) -> Block:
        key = storage._cdata
        block = self.alive.get(key)
        if block is None:
            block = self.alive[key] = Block(storage.nbytes(), part)
            self.now += block.size
            if self.now > self.peak:
                self.peak, self._rising = self.now, True
            weakref.finalize(storage, self._died, key).atexit = False
        return block

    def _died(self, key: int) -> None:
        self._keep_picture()
        self.now -= self.alive.pop(key).size

    def _keep_picture(self) -> None:
        """Note who is alive while it is most: only before the first death after a rise."""
        if self._rising:
            self._at_peak, self._rising = list(self.alive.values()), False
