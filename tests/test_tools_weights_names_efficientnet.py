"""EfficientNets of efficientnet-pytorch get timm's names: one list of blocks becomes stages."""

from __future__ import annotations

import pytest
import torch

from tools.weights.names.efficientnet import from_efficientnet_pytorch

# timm's network has stages of one and of two blocks, the first without an expansion
OWN = dict.fromkeys(
    ["conv_stem.weight"]
    + [f"blocks.{stage}.{block}.conv_dw.weight" for stage, block in ((0, 0), (1, 0), (1, 1))]
)
NAMES = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_mean": "bn1.running_mean",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.weight": "blocks.0.0.bn2.weight",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.1._bn0.weight": "blocks.1.0.bn1.weight",
    "_blocks.1._depthwise_conv.weight": "blocks.1.0.conv_dw.weight",
    "_blocks.1._bn1.weight": "blocks.1.0.bn2.weight",
    "_blocks.1._project_conv.weight": "blocks.1.0.conv_pwl.weight",
    "_blocks.1._bn2.weight": "blocks.1.0.bn3.weight",
    "_blocks.2._depthwise_conv.weight": "blocks.1.1.conv_dw.weight",
    "_blocks.2._se_reduce.bias": "blocks.1.1.se.conv_reduce.bias",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.weight": "bn2.weight",
    "_fc.weight": "classifier.weight",
    "_blocks.9._bn1.weight": "_blocks.9._bn1.weight",  # a block too many: whoever compares says so
}


def test_every_name_has_its_place_and_its_tensor():
    weights = {name: torch.tensor(float(number)) for number, name in enumerate(NAMES)}
    found = from_efficientnet_pytorch(weights, own=OWN)
    assert list(found) == list(NAMES.values())
    assert [int(tensor) for tensor in found.values()] == list(range(len(NAMES)))


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="want _conv_stem.weight"):
        from_efficientnet_pytorch({"conv_stem.weight": torch.zeros(1)}, own=OWN)
