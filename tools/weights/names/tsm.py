"""TSM checkpoints of mmaction2 and of the paper's authors -> names of model/backbones/tsm.py.

Ours are torchvision's names, and the stem's `conv1` and `bn1` lie in `stem`. A ResNet of torchvision, trained
on images, is a start for TSM as well: the shift has no parameters.
"""

from __future__ import annotations

import re

from torch import Tensor

from .renaming import rename, strip

CLASSIFIERS = ("fc.", "new_fc.", "cls_head.")


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of torchvision's resnet18 or resnet50 in our names."""
    return rename(weights, _with_stem)


def from_mit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of a checkpoint of the authors' temporal-shift-module in our names.

    A shifted convolution is called `conv1.net` there, and the network lies under `module.base_model.`.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "base_model.")
        return _with_stem(re.sub(r"\.conv1\.net\.", ".conv1.", name))

    return rename(weights, new_name)


def from_mmaction2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of mmaction2's ResNetTSM, with or without `backbone.`, in our names.

    There, a convolution and its norm are one module: `conv1.conv`, `conv1.bn`; `conv1.conv.net` if shifted.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "backbone.")
        name = name.replace(".conv1.conv.net.", ".conv1.conv.")
        name = re.sub(r"\bdownsample\.conv\.", "downsample.0.", name)
        name = re.sub(r"\bdownsample\.bn\.", "downsample.1.", name)
        name = re.sub(r"\bconv(\d)\.bn\.", r"bn\1.", name)
        return _with_stem(re.sub(r"\bconv(\d)\.conv\.", r"conv\1.", name))

    return rename(weights, new_name)


def _with_stem(name: str) -> str | None:
    if name.startswith(CLASSIFIERS):
        return None
    return f"stem.{name}" if name.startswith(("conv1.", "bn1.")) else name
