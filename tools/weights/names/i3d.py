"""I3D checkpoints of TensorFlow (Sonnet), JAX (Flax) and PyTorch -> names of model/backbones/i3d.py.

Ours are the PyTorch form's names. The other two state no scale of their batch norms, which is 1, and have
kernels as (t, h, w, in, out), statistics as (1, 1, 1, 1, C).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .renaming import rename, strip

BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_2/Conv3d_0a_3x3": "b2b",  # so called in Mixed_5b of the TensorFlow form alone
    "Branch_3/Conv3d_0b_1x1": "b3b",
}
TENSORFLOW = {
    "conv_3d/w": "conv3d.weight",
    "batch_norm/beta": "bn.bias",
    "batch_norm/moving_mean": "bn.running_mean",
    "batch_norm/moving_variance": "bn.running_var",
}
FLAX = {
    "params|Conv_0|kernel": "conv3d.weight",
    "params|BatchNorm_0|bias": "bn.bias",
    "batch_stats|BatchNorm_0|mean": "bn.running_mean",
    "batch_stats|BatchNorm_0|var": "bn.running_var",
}
CLASSIFIERS = ("logits", "Logits")
CLASSIFIER = re.compile(
    r"(?:^|[/|])(?:Logits/Conv3d_0c_1x1|logits)[/|.](?:conv_3d|Conv_0|conv3d)[/|.](\w+)(?::0)?$"
)


def from_pytorch(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the PyTorch form (rgb_imagenet.pt) in our names: the same, but for the classifier."""

    def new_name(name: str) -> str | None:
        name = strip(name, "module.")
        return None if name.startswith(CLASSIFIERS) else name

    return rename(weights, new_name)


def from_tensorflow(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables of the TensorFlow form, RGB/inception_i3d/Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w.

    A stream's name before inception_i3d and TensorFlow's ":0" at the end may be there or not.
    """

    def new_name(name: str) -> str | None:
        path = re.sub(r"^.*inception_i3d/", "", name).removesuffix(":0")
        if path.startswith(CLASSIFIERS):
            return None
        for ending, ours in TENSORFLOW.items():
            if path.endswith(f"/{ending}"):
                return f"{_unit(path.removesuffix(f'/{ending}'))}.{ours}"
        return name

    return _with_scales(rename(weights, new_name))


def from_flax(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables of the JAX form, params|Mixed_3b|Branch_0/Conv3d_0a_1x1|Conv_0|kernel."""

    def new_name(name: str) -> str | None:
        kind, *path, layer, tensor = name.split("|")
        if path and path[0].startswith(CLASSIFIERS):
            return None
        ours = FLAX.get(f"{kind}|{layer}|{tensor}")
        return f"{_unit('/'.join(path))}.{ours}" if ours else name

    return _with_scales(rename(weights, new_name))


def classifier_of(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The classifier of any of the three forms: weight (K, D) and bias (K,), of features averaged over space.

    Raises ValueError if the file has none.
    """
    found = {match[1]: tensor for name, tensor in weights.items() if (match := CLASSIFIER.search(name))}
    kernel = found.get("w", found.get("kernel"))  # (1, 1, 1, D, K)
    weight = found["weight"].flatten(1) if "weight" in found else None  # (K, D, 1, 1, 1)
    if kernel is not None:
        weight = kernel.flatten(0, 3).t()
    bias = found.get("b", found.get("bias"))
    if weight is None or bias is None:
        raise ValueError("no classifier in it, want the file as it was published, not a converted one")
    return weight.float().contiguous(), bias.float().flatten()


def _unit(path: str) -> str:
    """Mixed_3b/Branch_0/Conv3d_0a_1x1 -> Mixed_3b.b0; Conv3d_1a_7x7 as it is."""
    first, _, branch = path.partition("/")
    return f"{first}.{BRANCHES.get(branch, branch)}" if branch else first


def _with_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """In torch's layout: kernels (out, in, t, h, w), statistics (C,), and the scales and counters it has."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith("conv3d.weight") and tensor.ndim == 5:
            converted[name] = tensor.permute(4, 3, 0, 1, 2).contiguous()
        elif ".bn." in name:
            converted[name] = tensor.flatten()
            norm, _, what = name.rpartition(".")
            if what == "bias":
                converted[f"{norm}.weight"] = torch.ones_like(converted[name])
                converted[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        else:
            converted[name] = tensor
    return converted
