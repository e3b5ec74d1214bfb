"""SlowFast checkpoints of PySlowFast, Caffe2, mmaction2 and Re2TAL -> names of model/backbones/slowfast.py.

PySlowFast's native and Caffe2 names fit slowfast_50 and slowfast_101; those of mmaction2 and of OpenTAD's
Re2TAL fit slowfast_50_mmaction2 and slowfast_101_mmaction2, whose laterals are bare convolutions, or, if the
laterals have a norm, slowfast_50_mmaction2_lateral_norm. A name that follows no rule here stays as it is, so
that it shows as unexpected (non-local blocks).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .renaming import rename, strip

CLASSIFIERS = ("head.", "pred_", "cls_head.")
# OpenTAD's detector, in checkpoints of end-to-end training
DETECTOR = ("projection.", "neck.", "rpn_head.")
# what Caffe2 keeps beside the weights: learning rate, iteration, and a momentum per weight
SOLVER = re.compile(r"(lr|model_iter)$|.*_momentum$")

_PATHWAY = ("slow", "fast")
_CONV = {"conv": "0", "bn": "1"}
_CAFFE2_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def from_pyslowfast(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "model_state" of a PySlowFast checkpoint in our names."""
    return rename(weights, _pyslowfast_name)


def from_caffe2(blobs: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """The "blobs" of a Caffe2 checkpoint of PySlowFast's model zoo in our names.

    Caffe2 does not count the batches of a norm: they are given as 0 (which a momentum of 0.1 does not read).
    """
    arrays = {name: blob for name, blob in blobs.items() if not SOLVER.match(name)}
    weights = rename({name: torch.as_tensor(blob) for name, blob in arrays.items()}, _caffe2_name)
    for name in [name for name in weights if name.endswith(".running_mean")]:
        weights[name.removesuffix("running_mean") + "num_batches_tracked"] = torch.tensor(0)
    return weights


def from_mmaction2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of mmaction2's ResNet3dSlowFast, with or without `backbone.`, in our names."""
    return rename(weights, _mmaction2_name)


def from_opentad_re2tal(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of Re2TAL's rewired SlowFast, pretrained or trained with a detector, in our names.

    OpenTAD's ResNet3dSlowFast_inv has mmaction2's names, but a layer's blocks lie in `blocks`, the branch of
    the first one in `Fm` and those of the others, which are reversible, in `inv_block.Fm`.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "backbone.model.")
        return _mmaction2_name(re.sub(r"\.blocks\.(\d+)\.(?:inv_block\.)?(?:Fm\.)?", r".\1.", name))

    return rename(weights, new_name)


def _pyslowfast_name(name: str) -> str | None:
    name = name.removeprefix("module.")
    if name.startswith(CLASSIFIERS):
        return None
    if m := re.fullmatch(r"s1\.pathway([01])_stem\.(conv|bn)\.(\w+)", name):
        return _stem(int(m[1]), m[2], m[3])
    if m := re.fullmatch(r"s(\d)_fuse\.(?:conv_f2s|(bn))\.(\w+)", name):
        return f"lateral{m[1]}.{1 if m[2] else 0}.{m[3]}"
    if m := re.fullmatch(r"s(\d)\.pathway([01])_res(\d+)\.branch(1|2\.[abc])(_bn)?\.(\w+)", name):
        return f"{_block(int(m[2]), int(m[1]), m[3])}.{_part(m[4][-1])}.{1 if m[5] else 0}.{m[6]}"
    return name


def _caffe2_name(name: str) -> str | None:
    if name.startswith(CLASSIFIERS):
        return None
    where = re.fullmatch(r"(t_)?(.+?)_(?:w|bn_(s|b|rm|riv))", name)
    if where is None:
        return name
    pathway, module = 1 if where[1] else 0, where[2]
    kind, last = ("bn", _CAFFE2_NORM[where[3]]) if where[3] else ("conv", "weight")
    if module == ("res_conv1" if kind == "bn" else "conv1"):
        return _stem(pathway, kind, last)
    if pathway == 1 and module == "pool1_subsample":
        return f"lateral1.{_CONV[kind]}.{last}"
    if pathway == 1 and (m := re.fullmatch(r"res(\d)_\d+_branch2c_bn_subsample", module)):
        return f"lateral{m[1]}.{_CONV[kind]}.{last}"
    if m := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])", module):
        return f"{_block(pathway, int(m[1]), m[2])}.{_part(m[3][-1])}.{_CONV[kind]}.{last}"
    return name


def _mmaction2_name(name: str) -> str | None:
    name = strip(name, "module.", "backbone.")
    if name.startswith(CLASSIFIERS + DETECTOR):
        return None
    if m := re.fullmatch(r"(slow|fast)_path\.conv1\.(conv|bn)\.(\w+)", name):
        return _stem(_PATHWAY.index(m[1]), m[2], m[3])
    if m := re.fullmatch(r"slow_path\.(?:conv1|layer(\d))_lateral\.(conv|bn)\.(\w+)", name):
        return f"lateral{int(m[1] or 0) + 1}.{_CONV[m[2]]}.{m[3]}"
    part = r"(slow|fast)_path\.(layer\d)\.(\d+)\.(conv\d|downsample)\.(conv|bn)\.(\w+)"
    if m := re.fullmatch(part, name):
        return f"{m[1]}.{m[2]}.blocks.{m[3]}.{m[4]}.{_CONV[m[5]]}.{m[6]}"
    return name


def _stem(pathway: int, kind: str, last: str) -> str:
    return f"{_PATHWAY[pathway]}.stem.{'conv' if kind == 'conv' else 'norm'}.{last}"


def _block(pathway: int, stage: int, block: str) -> str:
    """PySlowFast's stages count from the stem, s1; our layers from the first residual stage."""
    return f"{_PATHWAY[pathway]}.layer{stage - 1}.blocks.{block}"


def _part(letter: str) -> str:
    """PySlowFast's branch1 is the shortcut, 2a to 2c are the convolutions of the branch."""
    return "downsample" if letter == "1" else f"conv{'abc'.index(letter) + 1}"
