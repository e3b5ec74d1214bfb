"""TSM checkpoints of three sources, their names written down from the sources' module trees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from weight_cases import own_tensors

from tools.weights.names import tsm

BLOCKS = {"tsm_r18": (2, 2, 2, 2), "tsm_r50": (3, 4, 6, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def layers(backbone: str) -> Iterator[tuple[str, str, str]]:
    """(where, number of the convolution or "downsample", kind) for every layer; where ends with a dot."""
    convolutions = "12" if backbone == "tsm_r18" else "123"
    yield from (("", "1", "conv"), ("", "1", "bn"))
    for stage, blocks in enumerate(BLOCKS[backbone], start=1):
        for block in range(blocks):
            where = f"layer{stage}.{block}."
            yield from ((where, number, kind) for number in convolutions for kind in ("conv", "bn"))
            if block == 0 and (stage > 1 or backbone == "tsm_r50"):
                yield from ((where, "downsample", kind) for kind in ("conv", "bn"))


def torchvision_layer(where: str, number: str, kind: str) -> str:
    if number == "downsample":
        return f"{where}downsample.{'0' if kind == 'conv' else '1'}"
    return f"{where}{kind}{number}"


def mit_layer(where: str, number: str, kind: str) -> str:
    shifted = ".net" if where and (number, kind) == ("1", "conv") else ""
    return f"module.base_model.{torchvision_layer(where, number, kind)}{shifted}"


def mmaction2_layer(where: str, number: str, kind: str) -> str:
    shifted = ".net" if where and (number, kind) == ("1", "conv") else ""
    return f"backbone.{where}{number if number == 'downsample' else 'conv' + number}.{kind}{shifted}"


SOURCES = {
    "torchvision": (torchvision_layer, ("fc.weight", "fc.bias")),
    "mit": (mit_layer, ("module.new_fc.weight", "module.new_fc.bias")),
    "mmaction2": (mmaction2_layer, ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")),
}


@pytest.mark.parametrize("backbone", list(BLOCKS))
@pytest.mark.parametrize("source", list(SOURCES))
def test_every_tensor_but_the_classifier_finds_its_place(source, backbone):
    name_of, classifier = SOURCES[source]
    own = own_tensors(backbone)
    weights: dict[str, Tensor] = {name: torch.zeros(1) for name in classifier}
    for layer in layers(backbone):
        ours = torchvision_layer(*layer)
        for part in ("weight",) if layer[2] == "conv" else NORM:
            prefix = "" if layer[0] else "stem."
            weights[f"{name_of(*layer)}.{part}"] = own[f"{prefix}{ours}.{part}"]
    converted = getattr(tsm, f"from_{source}")(weights)
    assert converted.keys() == own.keys()
    assert all(converted[name] is own[name] for name in own)


def test_names_look_as_they_do_in_the_files():
    names = [mit_layer("layer1.0.", "1", "conv"), mmaction2_layer("layer1.0.", "1", "conv")]
    assert names == ["module.base_model.layer1.0.conv1.net", "backbone.layer1.0.conv1.conv.net"]
    assert mmaction2_layer("layer2.0.", "downsample", "bn") == "backbone.layer2.0.downsample.bn"


def test_a_network_with_non_local_blocks_is_not_taken_for_ours():
    (name,) = tsm.from_mit({"module.base_model.layer2.0.nl.g.weight": torch.zeros(1)})
    assert name == "layer2.0.nl.g.weight"  # unknown to the network: listed as unexpected
