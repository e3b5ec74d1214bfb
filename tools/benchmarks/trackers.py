"""Two counters of tensor memory: what autograd keeps for the backward, and what is alive."""

from __future__ import annotations

import weakref
from collections import Counter

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that autograd holds for the backward, each storage once: `now`.

    ignore: data pointers of storages that do not count, such as those of parameters.
    """

    def __init__(self, ignore: set[int]) -> None:
        self.ignore, self.holders, self.now = ignore, Counter(), 0
        super().__init__(self._pack, lambda held: held.tensor)

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def change(self, storage: int, size: int, holders: int) -> None:
        """One holder of a storage more (+1) or fewer (-1)."""
        if storage in self.ignore:
            return
        self.holders[storage] += holders
        if self.holders[storage] == (1 if holders > 0 else 0):
            self.now += size * holders


class _Held:
    """A saved tensor; tells its counter when autograd lets go of it."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.counter, self.tensor = counter, tensor
        self.storage, self.size = storage.data_ptr(), storage.nbytes()
        counter.change(self.storage, self.size, +1)

    def __del__(self) -> None:
        self.counter.change(self.storage, self.size, -1)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators made and that are alive; `peak` is in bytes. For the CPU."""

    def __init__(self, ignore: set[int]) -> None:
        super().__init__()
        self.ignore, self.alive, self.now, self.peak = ignore, set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._born(leaf.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key == 0 or key in self.alive or key in self.ignore:
            return
        self.alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._died, key, storage.nbytes())

    def _died(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size
