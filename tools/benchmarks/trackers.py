"""Count the bytes of tensors: what autograd keeps for the backward pass, and what is alive, by part.

torch.distributed._tools.mem_tracker counts live bytes, too (a test compares the two peaks), but knows other
parts: it calls whatever runs again in the backward pass an activation. And it copies its books for every
module at every operator, which makes a step on fake tensors 13 times as slow.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that autograd holds for the backward pass, each storage once: `now`.

    ignore: data pointers of storages that do not count, such as those of parameters.
    """

    def __init__(self, ignore: Collection[int]) -> None:
        self.ignore, self.now = ignore, 0
        self.holders: Counter[int] = Counter()  # saved tensors of each storage
        super().__init__(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> SavedBytes:  # type: ignore[override]  # torch's returns None
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        return _SavedTensor(self, tensor)

    def change(self, storage: int, size: int, holders: int) -> None:
        """Count one holder of a storage more (+1) or fewer (-1)."""
        if storage in self.ignore:
            return
        self.holders[storage] += holders
        if self.holders[storage] == (1 if holders > 0 else 0):
            self.now += size * holders


class _SavedTensor:
    """A saved tensor, which is counted until autograd lets go of it."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.counter, self.tensor = counter, tensor
        self.storage, self.size = storage.data_ptr(), storage.nbytes()
        counter.change(self.storage, self.size, +1)

    def __del__(self) -> None:
        self.counter.change(self.storage, self.size, -1)


@dataclass
class _Block:
    """One live storage: its bytes and what it is for, which may be found out later than it was made."""

    size: int
    part: str


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages that operators made inside, real or fake: `now`, and at most `peak`.

    ignore: data pointers of storages that do not count. part: what the next storages are for; may be set
    anew at any time. Storages from outside count from `include` on. A tensor that lives only inside one
    kernel is not seen.
    """

    def __init__(self, ignore: Collection[int] = (), *, part: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ignore, self.part = ignore, part
        self.now, self.peak = 0, 0
        self._alive: dict[int, _Block] = {}
        self._at_peak: list[_Block] = []
        self._at_peak_is_old = False  # what is alive now is the peak, and _at_peak does not hold it yet

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if not self.ignore or storage.data_ptr() not in self.ignore:  # a fake one has no pointer
                    self._add(storage, self.part)
        return result

    def include(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors made elsewhere, under `part`; those that count already move there."""
        for tensor in tensors:
            self._add(tensor.untyped_storage(), part).part = part

    def reassign(self, source: str, target: str) -> None:
        """What is alive of part `source` belongs to `target` from now on, also in `parts_at_peak`."""
        for block in self._alive.values():
            if block.part == source:
                block.part = target

    def parts_at_peak(self) -> Counter[str]:
        """Bytes by part at the moment when most were alive."""
        self._record_peak()
        sizes: Counter[str] = Counter()
        for block in self._at_peak:
            sizes[block.part] += block.size
        return sizes

    def reset_peak(self) -> None:
        """Look for a new peak from here on."""
        self.peak, self._at_peak_is_old = self.now, True

    def _add(self, storage: torch.UntypedStorage, part: str) -> _Block:
        key = storage._cdata
        block = self._alive.get(key)
        if block is None:
            block = self._alive[key] = _Block(storage.nbytes(), part)
            self.now += block.size
            if self.now > self.peak:
                self.peak, self._at_peak_is_old = self.now, True
            weakref.finalize(storage, self._remove, key).atexit = False
        return block

    def _remove(self, key: int) -> None:
        self._record_peak()
        self.now -= self._alive.pop(key).size

    def _record_peak(self) -> None:
        """Note what is alive while it is most: once, before the first storage goes after a rise."""
        if self._at_peak_is_old:
            self._at_peak, self._at_peak_is_old = list(self._alive.values()), False
