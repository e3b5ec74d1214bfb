"""ActionFormer's detector, of its authors or OpenTAD -> names of model/detector/actionformer.

Both are one network: OpenTAD calls the pyramid `projection` instead of `backbone`, and both heads together
`rpn_head`. Encoders have other names and are left out.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .renaming import rename, strip

# Parts of a block, in both.
BLOCK = (
    (r"\.ln1\.", ".attention_norm."),
    (r"\.ln2\.", ".mlp_norm."),
    (r"\.attn\.(query|key|value)_conv\.conv\.", r".attention.convs.\1."),
    (r"\.attn\.(query|key|value)_norm\.", r".attention.norms.\1."),
    (r"\.attn\.(query|key|value)\.", r".attention.maps.\1."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.mlp\.3\.", ".mlp.2."),
    (r"\.drop_path_attn\.", ".attention_end."),
    (r"\.drop_path_mlp\.", ".mlp_end."),
)
NECK = ((r"^neck\.fpn_norms\.", "pyramid.norms."),)
AUTHORS = (
    (r"^backbone\.embd\.(\d+)\.conv\.", r"pyramid.embed.\1.conv."),
    (r"^backbone\.embd_norm\.(\d+)\.", r"pyramid.embed.\1.norm."),
    (r"^backbone\.stem\.", "pyramid.stem."),
    (r"^backbone\.branch\.", "pyramid.branches."),
    (r"^cls_head\.head\.(\d+)\.conv\.", r"classes.layers.\1.conv."),
    (r"^cls_head\.norm\.(\d+)\.", r"classes.layers.\1.norm."),
    (r"^cls_head\.cls_head\.conv\.", "classes.last."),
    (r"^reg_head\.head\.(\d+)\.conv\.", r"distances.layers.\1.conv."),
    (r"^reg_head\.norm\.(\d+)\.", r"distances.layers.\1.norm."),
    (r"^reg_head\.offset_head\.conv\.", "distances.last."),
    (r"^reg_head\.scale\.", "scales."),
)
OPENTAD = (
    (r"^projection\.embed\.", "pyramid.embed."),
    (r"^projection\.stem\.", "pyramid.stem."),
    (r"^projection\.branch\.", "pyramid.branches."),
    (r"^rpn_head\.cls_convs\.", "classes.layers."),
    (r"^rpn_head\.cls_head\.", "classes.last."),
    (r"^rpn_head\.reg_convs\.", "distances.layers."),
    (r"^rpn_head\.reg_head\.", "distances.last."),
    (r"^rpn_head\.scale\.", "scales."),
    (r"^rpn_head\.loss_normalizer$", "normaliser.value"),
)
SCALE = re.compile(r"scales\.(\d+)\.scale")


def from_authors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" (or "state_dict_ema") of actionformer_release in our names."""
    return _converted(weights, AUTHORS)


def from_opentad(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" (or "state_dict_ema") of OpenTAD's ActionFormer in our names, without the encoder."""
    return _converted(weights, OPENTAD)


def _converted(weights: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    def new_name(name: str) -> str | None:
        new = strip(name, "module.")
        for pattern, replacement in (*names, *NECK):
            if re.match(pattern, new):
                new = re.sub(pattern, replacement, new)
                break
        else:
            return None
        for pattern, replacement in BLOCK:
            new = re.sub(pattern, replacement, new)
        return new

    renamed = rename(weights, new_name)
    converted = {name: _shaped(name, tensor) for name, tensor in renamed.items() if not SCALE.fullmatch(name)}
    levels = sorted((int(match[1]), name) for name in renamed if (match := SCALE.fullmatch(name)))
    if levels:  # one number per level, in a vector of ours
        converted["scales.factors"] = torch.stack([renamed[name].reshape(()) for _, name in levels])
    return converted


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """Norms are (1, C, 1) in the authors' form, (C,) in ours; OpenTAD's normaliser may be a whole number."""
    if re.search(r"norms?(\.\w+)?\.(weight|bias)$", name):
        return tensor.flatten()
    return tensor.float() if name == "normaliser.value" else tensor
