"""ETAD's detector as its authors or OpenTAD saved it -> names of model/detector/etad.

OpenTAD's is another network: `detector.etad.origin: opentad`. Encoders have other names and are left out.
"""

from __future__ import annotations

import re

from torch import Tensor

from .renaming import rename, strip

NAMES = (
    (r"^temporal_enhance\.layer1\.", "neck.embed."),
    (r"^temporal_enhance\.mem_f\.", "neck.forward_lstm."),
    (r"^temporal_enhance\.mem_b\.", "neck.backward_lstm."),
    (r"^temporal_enhance\.layer2_f\.", "neck.past."),
    (r"^temporal_enhance\.layer2_b\.", "neck.future."),
    (r"^temporal_enhance\.layer2_d\.", "neck.present."),
    (r"^temporal_enhance\.layer3\.", "neck.join."),
    (r"^tem\.0\.", "boundary.conv.0."),
    (r"^tem\.2\.", "boundary.logits."),
    (r"^stage_conv\.(\d+)\.", r"stages.\1.conv."),
    (r"^stage_pem\.(\d+)\.reduce_dim_before\.", r"stages.\1.reduce."),
    (r"^stage_pem\.(\d+)\.reduce_dim_ext\.", r"stages.\1.shared."),
    (r"^stage_pem\.(\d+)\.iou_fc\.", r"stages.\1.tiou."),
    (r"^stage_pem\.(\d+)\.cls_se_fc\.", r"stages.\1.boundary."),
    (r"^stage_pem\.(\d+)\.reg_cw_fc\.", r"stages.\1.centre."),
    (r"^stage_pem\.(\d+)\.reg_s_fc\.", r"stages.\1.start."),
    (r"^stage_pem\.(\d+)\.reg_e_fc\.", r"stages.\1.end."),
)
PREFIXES = ("module.", "base_detector.")
NECK = {"layer2_f": "past", "layer2_b": "future", "layer2_d": "present", "layer3": "join"}
PART = {"conv": "0", "norm": "1"}
HEADS = {"iou_head": "tiou", "se_head": "boundary", "reg_head": "offsets"}


def from_authors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of an ETAD checkpoint in our names, without the encoder."""

    def new_name(name: str) -> str | None:
        new = name
        for prefix in PREFIXES:
            new = strip(new, prefix)
        for pattern, replacement in NAMES:
            if re.match(pattern, new):
                return re.sub(pattern, replacement, new)
        return None

    return rename(weights, new_name)


def from_opentad(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" (or "state_dict_ema") of OpenTAD's ETAD in our names, without the encoder."""
    layers = _most_layers(weights)

    def new_name(name: str) -> str | None:
        name = strip(name, "module.")
        if m := re.fullmatch(r"projection\.convs\.0\.(conv|norm)\.(\w+)", name):
            return f"neck.embed.{PART[m[1]]}.{m[2]}"
        if m := re.fullmatch(r"neck\.mem_(f|b)\.(\w+)", name):
            return f"neck.{'forward' if m[1] == 'f' else 'backward'}_lstm.{m[2]}"
        if m := re.fullmatch(r"neck\.(layer\w+)\.(conv|norm)\.(\w+)", name):
            return f"neck.{NECK[m[1]]}.{PART[m[2]]}.{m[3]}" if m[1] in NECK else None
        if m := re.fullmatch(r"rpn_head\.tem\.(0|1)\.conv\.(\w+)", name):
            return f"boundary.{'conv.0' if m[1] == '0' else 'logits'}.{m[2]}"
        if m := re.fullmatch(r"roi_head\.proposal_heads\.(\d+)\.shared_conv_fc\.fcs\.0\.0\.(\w+)", name):
            return f"stages.{m[1]}.shared.0.{m[2]}"
        if m := re.fullmatch(
            r"roi_head\.proposal_heads\.(\d+)\.(\w+_head)\.(?:fcs\.(\d+)\.0|head)\.(\w+)", name
        ):
            layer = layers if m[3] is None else int(m[3])
            return f"stages.{m[1]}.{HEADS[m[2]]}.{2 * layer}.{m[4]}" if m[2] in HEADS else None
        return None

    return rename(weights, new_name)


def _most_layers(weights: dict[str, Tensor]) -> int:
    """Hidden layers of a head, as many as are numbered; the last layer has no number."""
    numbers = (re.search(r"_head\.fcs\.(\d+)\.", name) for name in weights)
    return max((int(found[1]) + 1 for found in numbers if found), default=0)
