"""EfficientNets in the names of efficientnet-pytorch (lukemelas, and the lite one) -> timm's.

There all blocks stand in one list, `_blocks.N`; timm's are `blocks.STAGE.N`. A block without an expansion is
`conv_dw, bn1, conv_pw, bn2` in timm, one with it `conv_pw, bn1, conv_dw, bn2, conv_pwl, bn3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .renaming import rename

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
ALIKE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def from_efficientnet_pytorch(weights: dict[str, Tensor], *, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """own: the tensors of timm's network, by name, which say how many blocks a stage has.

    Raises ValueError for what is not in these names.
    """
    positions = sorted(
        {(int(m[1]), int(m[2])) for m in (re.match(r"blocks\.(\d+)\.(\d+)\.", n) for n in own) if m}
    )
    if "_conv_stem.weight" not in weights:
        raise ValueError("want _conv_stem.weight, as efficientnet-pytorch writes it")

    def new_name(name: str) -> str | None:
        found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if found is None:
            first, _, rest = name.partition(".")
            return f"{OUTSIDE.get(first, first)}.{rest}"
        number, layer, rest = int(found[1]), found[2], found[3]
        expanded = f"_blocks.{number}._expand_conv.weight" in weights
        layer = {**(EXPANDED if expanded else PLAIN), **ALIKE}.get(layer, layer)
        if number >= len(positions):
            return name
        stage, block = positions[number]
        return f"blocks.{stage}.{block}.{layer}.{rest}"

    return rename(weights, new_name)
