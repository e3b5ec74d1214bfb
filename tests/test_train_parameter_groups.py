"""train/parameter_groups.py: which learning rate and weight decay each parameter has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.detector.settings import DetectorSettings
from model.network import Network
from model.settings import EncoderSettings
from train.optimizer import OptimizerSettings
from train.parameter_groups import begins_with, group_sizes, parameter_groups
from train.settings import Settings, settings_from

RATES = {"encoder_lr": 1e-6, "detector_lr": 1e-3, "weight_decay": 0.1}


def network_of(backbone: str = "r2plus1d_tiny", kind: str = "proposals", **encoder: object) -> Network:
    with torch.device("meta"):
        return Network(
            EncoderSettings(backbone=backbone, **encoder),
            DetectorSettings(kind=kind, num_steps=64),
            num_classes=1,
        )


def values_by_name(network: nn.Module, **settings: object) -> dict[str, tuple[str, float, float]]:
    """Of each parameter: the group it is in, learning rate, weight decay."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, OptimizerSettings(**RATES, **settings))
    found = [(names[id(p)], (g["name"], g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(dict(found)) == len(found), "a parameter in two groups"
    return dict(found)


def test_without_further_settings_each_part_has_its_rate_and_weights_alone_shrink():
    found = values_by_name(network_of())
    assert found["encoder.backbone.stem.0.weight"] == ("encoder", 1e-6, 0.1)
    assert found["encoder.backbone.stem.1.weight"] == ("encoder, without decay", 1e-6, 0.0)
    assert {name.split(".")[0]: rate for name, (_, rate, _) in found.items()} == {
        "encoder": 1e-6,
        "detector": 1e-3,
    }
    assert all(decay == 0 for name, (_, _, decay) in found.items() if name.endswith("bias"))


def test_all_shrink_if_asked_in_two_groups():
    groups = parameter_groups(network_of(), OptimizerSettings(**RATES, decay_weights_alone=False))
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("encoder", 1e-6, 0.1),
        ("detector", 1e-3, 0.1),
    ]


@pytest.mark.parametrize("backbone", ["tsm_r18", "video_swin_t", "videomae_s"])
def test_what_shrinks_are_the_weights_of_linear_layers_and_convolutions(backbone):
    """By module, as ActionFormer's own code decides it, against our rule by name and axes."""
    network = network_of(backbone, "actionformer")
    maps = (nn.Linear, nn.modules.conv._ConvNd)
    want = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, maps)}
    assert {name for name, (_, _, decay) in values_by_name(network).items() if decay} == want


def test_all_matrices_of_attention_and_lstm_shrink():
    """As torch names them: all of both that is no bias and no scale."""
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)  # with other widths its matrices are three
    parts = {"layer": nn.TransformerEncoderLayer(8, 2, 16), "attention": attention, "lstm": nn.LSTM(4, 4)}
    network = nn.ModuleDict({"encoder": nn.ModuleDict(parts), "detector": nn.Linear(2, 2)})
    shrinking = {name for name, (_, _, decay) in values_by_name(network).items() if decay}
    assert shrinking == {name for name, p in network.named_parameters() if p.ndim > 1}
    assert "encoder.layer.self_attn.in_proj_weight" in shrinking
    assert "encoder.attention.q_proj_weight" in shrinking


def test_the_longest_prefix_counts_alone_and_ends_at_a_dot():
    factors = {
        "encoder": 0.1,
        "encoder.backbone.layer2": 0.5,
        "encoder.backbone.layer2.1": 2,
        "detector.neck": 3,
    }
    found = values_by_name(network_of(), layer_lrs=factors)
    rates = {name: rate for name, (_, rate, _) in found.items()}
    assert rates["encoder.backbone.stem.0.weight"] == pytest.approx(1e-7)
    assert rates["encoder.backbone.layer2.0.conv1.0.0.weight"] == pytest.approx(5e-7)
    assert rates["encoder.backbone.layer2.1.conv1.0.0.weight"] == pytest.approx(2e-6)
    assert {round(r, 9) for n, r in rates.items() if n.startswith("detector.neck.")} == {3e-3}
    assert {r for n, r in rates.items() if n.startswith("detector.") and ".neck" not in n} == {1e-3}
    assert begins_with("a.layer1.0", "a.layer1") and not begins_with("a.layer10.0", "a.layer1")


def test_a_prefix_may_be_a_whole_name_or_have_frozen_parameters_below_it():
    name = "encoder.backbone.layer2.0.conv1.0.0.weight"
    found = values_by_name(network_of(frozen_stages=1), layer_lrs={"encoder.backbone": 0.1, name: 0.5})
    assert found[name][1] == pytest.approx(5e-7)
    assert found["encoder.backbone.layer2.1.conv1.0.0.weight"][1] == pytest.approx(1e-7)


def test_sizes_add_up_to_all_that_is_trained():
    network = network_of(frozen_stages=1)
    sizes = group_sizes(parameter_groups(network, OptimizerSettings(layer_lrs={"detector.neck": 0.5})))
    assert sum(sizes.values()) == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert list(sizes)[:2] == ["encoder", "encoder, without decay"]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("encoder.backbone.layr2", "no parameter begins with .*; did you mean 'encoder.backbone.layer2'"),
        ("encoder.backbone.layer", "no parameter begins with .*; did you mean 'encoder.backbone.layer"),
        ("x", "encoder.backbone and detector begin most of them"),
        (
            "encoder.backbone.stem",
            "all parameters that begin with encoder.backbone.stem are frozen; leave it out",
        ),
    ],
)
def test_a_prefix_that_fits_nothing_is_refused(prefix, message):
    with pytest.raises(ValueError, match=f"^optimizer.layer_lrs: .*{message}") as caught:
        parameter_groups(network_of(frozen_stages=0), OptimizerSettings(layer_lrs={prefix: 0.5}))
    assert "\n" not in str(caught.value)


def test_a_negative_factor_and_one_that_is_no_number_are_refused_by_name():
    for value in (-1, "much"):
        with pytest.raises(ValueError, match="layer_lrs"):
            settings_from({"data": {"shards": "x"}, "optimizer": {"layer_lrs": {"encoder": value}}})
    assert Settings.model_validate({"data": {"shards": "x"}}).optimizer.layer_lrs == {}
