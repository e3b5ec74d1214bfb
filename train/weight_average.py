"""An exponential moving average (EMA) of the trainable weights, sharded over ranks as the optimizer's are.

Each rank averages what it updates, in float32 and where it lies (on the host if the optimizer is offloaded):
no communication in a step. The whole average is read by changing places with the weights, which is exact.
Buffers, such as a batch norm's statistics, and frozen weights are not averaged: with the average they are the
network's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from train.checkpoint import read_safetensors
from train.distributed import rank
from train.engine import full_state_dict, load_master_weights, master_weights


class WeightAverage:
    """After each update: average = decay * average + (1 - decay) * weights, from the first weights on."""

    def __init__(self, engine: Any, decay: float):
        """engine: of `build_engine`, before its first step. All ranks build it."""
        self.engine, self.decay = engine, decay
        self.values = [master.clone() for master in master_weights(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights by one step; call it after each one that changed them."""
        for value, master in zip(self.values, master_weights(self.engine), strict=True):
            value.lerp_(master, 1 - self.decay)

    @torch.no_grad()
    def _swap(self) -> None:
        for value, master in zip(self.values, master_weights(self.engine), strict=True):
            weights = master.clone()
            master.copy_(value)
            value.copy_(weights)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within it the network has the averaged weights; afterwards its own, bit for bit.

        All ranks enter it, between steps. After a failure the average stays there: other ranks may be
        elsewhere, and the run is at its end.
        """
        self._swap()
        load_master_weights(self.engine)
        yield
        self._swap()
        load_master_weights(self.engine)

    def full_state_dict(self) -> dict[str, Tensor]:
        """As `train.engine.full_state_dict`, with the averaged weights. All ranks call it."""
        with self.swapped_in():
            return full_state_dict(self.engine)

    def save(self, folder: Path) -> None:
        """Write this rank's share beside what `save_state` writes. All ranks call it."""
        save_file({f"{i:05d}": value for i, value in enumerate(self.values)}, self._file(folder))

    def load(self, folder: Path) -> None:
        """Load what `save` wrote under the same partitioning; ValueError, one line, if it does not fit."""
        path = self._file(folder)
        if not path.is_file():
            raise ValueError(f"{path}: no such file, the averaged weights are lost; resume from another one")
        saved = list(dict(sorted(read_safetensors(path).items())).values())
        if [value.shape for value in saved] != [value.shape for value in self.values]:
            raise ValueError(f"{path}: of another network or partitioning; resume from another checkpoint")
        for value, stored in zip(self.values, saved, strict=True):
            value.copy_(stored)

    @staticmethod
    def _file(folder: Path) -> Path:
        return folder / f"average_{rank():05d}.safetensors"
