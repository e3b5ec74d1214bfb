"""R(2+1)D checkpoints of torchvision and TSP -> names of model/backbones/r2plus1d.py.

Ours are torchvision's names, so only prefixes and classifiers go.
"""

from __future__ import annotations

from torch import Tensor

from .renaming import rename, strip

CLASSIFIERS = ("fc",)  # torchvision's `fc`; TSP's `fc`, `fc1`, `fc2`, one per task


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of torchvision's r2plus1d_18 in our names."""
    return rename(weights, lambda name: None if name.startswith(CLASSIFIERS) else name)


def from_tsp(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "model" of a TSP checkpoint (H. Alwassel et al., ICCVW 2021) in our names of r2plus1d_34.

    Its encoder lies under `features.`; ETAD's copies have that prefix stripped. Both are read.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "features.")
        return None if name.startswith(CLASSIFIERS) else name

    return rename(weights, new_name)
