"""Video Swin checkpoints of torchvision, mmaction2 and OpenTAD -> names of model/backbones/video_swin.py.

Ours: `patch_embed`, `layer1.0` ... `layer4.1` (blocks), `merge1` to `merge3` between them, `norm`. No tensor
changes its shape. A `relative_position_index` is no weight: ours is computed.
"""

from __future__ import annotations

import re

from torch import Tensor

from .renaming import rename, strip

CLASSIFIERS = ("head.", "cls_head.")
INDEX = ".relative_position_index"


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of torchvision's swin3d_t, swin3d_s or swin3d_b in our names.

    `features` lists blocks and mergings in turn there: features.0 is our layer1, features.1 our merge1.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.")
        name = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        return _common(re.sub(r"^features\.(\d+)\.", _feature, name))

    return rename(weights, new_name)


def _feature(match: re.Match[str]) -> str:
    number, is_merging = divmod(int(match[1]), 2)
    return f"{'merge' if is_merging else 'layer'}{number + 1}."


def from_mmaction2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of mmaction2's SwinTransformer3D, with or without `backbone.`, in our names.

    The checkpoints of the paper's authors are named alike, but for the last norm: `norm`, not `norm3`.
    """

    def new_name(name: str) -> str | None:
        return _common(_from_layers(strip(name, "module.", "backbone.")))

    return rename(weights, new_name)


def from_opentad_re2tal(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of OpenTAD's rewired SwinTransformer3D_inv in our names.

    As in mmaction2, but a block is split: `inv_block.Fm` holds norm1 and attn, `inv_block.Gm` norm2 and mlp.
    The encoder lies under `backbone.` in a file of pretrained weights, under `backbone.model.backbone.` in a
    detector's, whose other tensors keep their names.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "backbone.model.", "backbone.")
        return _common(_from_layers(re.sub(r"\.inv_block\.(Fm|Gm)\.", ".", name)))

    return rename(weights, new_name)


def _from_layers(name: str) -> str:
    """layers.0.blocks.1.* -> layer1.1.*, layers.0.downsample.* -> merge1.*, norm3.* -> norm.*"""
    name = re.sub(r"^layers\.(\d+)\.blocks\.", lambda match: f"layer{int(match[1]) + 1}.", name)
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"merge{int(match[1]) + 1}.", name)
    return re.sub(r"^norm\d+\.", "norm.", name)


def _common(name: str) -> str | None:
    return None if name.startswith(CLASSIFIERS) or name.endswith(INDEX) else name
