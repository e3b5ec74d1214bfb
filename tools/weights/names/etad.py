"""ETAD's detector as its authors saved it -> names of model/detector/etad.

Encoders have other names and are left out.
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
