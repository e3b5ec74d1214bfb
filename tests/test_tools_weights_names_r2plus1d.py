"""R(2+1)D checkpoints: every published tensor but the classifier's finds its place, and no other."""

from __future__ import annotations

import pytest
import torch
from weight_cases import own_tensors, published, shapes

from tools.weights.names import r2plus1d

WEIGHTS = {"a.weight": torch.zeros(1)}


def test_torchvisions_file_is_ours_without_its_classifier(shared_real):
    weights = published(shared_real, "torchvision_r2plus1d_18.json")
    converted = r2plus1d.from_torchvision(weights)
    assert shapes(converted) == shapes(own_tensors("r2plus1d_18"))
    assert weights.keys() - converted.keys() == {"fc.weight", "fc.bias"}
    assert all(converted[name] is weights[name] for name in converted)


@pytest.mark.parametrize("prefix", ["", "features."])
def test_tsps_file_is_ours_with_and_without_its_prefix(shared_real, prefix):
    weights = published(shared_real, "etad_tsp_r2plus1d_34_backbone.json")
    weights = {prefix + name: tensor for name, tensor in weights.items()}
    weights |= {name: torch.zeros(1) for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    assert shapes(r2plus1d.from_tsp(weights)) == shapes(own_tensors("r2plus1d_34"))


def test_a_name_that_no_rule_knows_stays_as_it_is():
    assert list(r2plus1d.from_torchvision(WEIGHTS)) == list(r2plus1d.from_tsp(WEIGHTS)) == ["a.weight"]


def test_two_tensors_of_one_name_are_refused():
    weights = {"stem.0.weight": torch.zeros(1), "features.stem.0.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="'stem.0.weight' and 'features.stem.0.weight' are both"):
        r2plus1d.from_tsp(weights)
