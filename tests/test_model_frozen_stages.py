"""encoder.frozen_stages: the stem and the first stages of every backbone are neither trained nor changed."""

from __future__ import annotations

import pytest
import torch

from model.backbones import BACKBONES, WITHOUT_RESIDUALS, build_backbone
from model.detector.settings import DetectorSettings
from model.network import ClipEncoder, Network
from model.settings import EncoderSettings
from train.optimizer import OptimizerSettings
from train.parameter_groups import parameter_groups

SMALL = DetectorSettings(num_steps=8, neck_dim=16, fc_dim=16, head_dim=16, roi_bins=4)
STAGES = {"r2plus1d_tiny": 2, "i3d": 3} | dict.fromkeys([n for n in BACKBONES if "videomae" in n], 1)


def settings_of(name: str, number: int, **changes: object) -> EncoderSettings:
    reversible = name not in WITHOUT_RESIDUALS
    return EncoderSettings(backbone=name, reversible=reversible, frozen_stages=number, **changes)


@pytest.mark.parametrize(
    "name", ["r2plus1d_tiny", "r2plus1d_18", "i3d", "slowfast_50", "tsm_r18", "video_swin_t", "videomae_s"]
)
def test_the_parts_of_a_backbone_are_disjoint_and_only_its_last_norm_is_in_none(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    parts = backbone.parts()
    assert len(parts) == 1 + STAGES.get(name, 4)
    owners = {
        parameter: [
            number for number, part in enumerate(parts) if parameter.startswith(tuple(f"{m}." for m in part))
        ]
        for parameter, _ in backbone.named_parameters()
    }
    assert all(
        len(numbers) == 1 for name, numbers in owners.items() if name not in ("norm.weight", "norm.bias")
    )
    assert {n for numbers in owners.values() for n in numbers} == set(range(len(parts)))


@pytest.mark.parametrize("number", [-1, 0, 1, 2])
def test_a_step_changes_nothing_of_the_frozen_stages_and_all_of_the_others(number):
    torch.manual_seed(0)
    encoder = settings_of("r2plus1d_tiny", number, clip_ratio=1.0, clips_per_forward=2)
    network = Network(encoder, SMALL, num_classes=3).train()
    clips = torch.randint(0, 256, (1, 4, 3, 4, 16, 16), dtype=torch.uint8)
    truth = [torch.tensor([[1.0, 4.0]])], [torch.tensor([1])]
    network(clips, *truth, generator=torch.Generator().manual_seed(0))[0].backward()
    frozen = ("stem.", "layer1.", "layer2.")[: number + 1]
    for name, parameter in network.encoder.backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen or ("nothing",)), name
    encoder_group = parameter_groups(network, OptimizerSettings())[0]
    assert (encoder_group["name"] == "encoder") == (number < 2), "no optimizer state for a frozen encoder"


@pytest.mark.parametrize(
    "name", ["r2plus1d_tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in ("i3d", "tsm_r18"))]
)
def test_the_gradients_of_what_is_trained_are_those_of_the_whole_network(name):
    """In float64, where they differ by rounding alone; without batch norm statistics of the clips."""
    shape = (1, 3, 8, 32, 32)
    grads = []
    for number in (-1, 1):
        torch.manual_seed(0)
        encoder = ClipEncoder(settings_of(name, number, steps_per_clip=None)).double().train()
        clips = torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul(255)
        encoder(clips).square().sum().backward()
        grads.append({n: p.grad for n, p in encoder.named_parameters() if p.requires_grad})
    everything, trained = grads
    assert trained and len(trained) < len(everything)
    for parameter, gradient in trained.items():
        torch.testing.assert_close(gradient, everything[parameter], rtol=1e-8, atol=1e-10)


def test_frozen_stages_are_in_evaluation_whatever_the_rest_is():
    encoder = ClipEncoder(settings_of("tsm_r18", 1, train_batch_norm=True)).train()
    modes = {name: module.training for name, module in encoder.backbone.named_modules() if name}
    assert not any(mode for name, mode in modes.items() if name.startswith(("stem", "layer1")))
    assert all(mode for name, mode in modes.items() if name.startswith(("layer2", "layer3", "layer4")))


def test_what_is_frozen_keeps_no_graph():
    encoder = ClipEncoder(settings_of("tsm_r18", 2)).train()
    x = torch.rand(1, 4, 3, 32, 32)
    for name in ("stem", "layer1", "layer2"):
        x = encoder.backbone.get_submodule(name)(x)
        assert x.grad_fn is None, name
    assert encoder.backbone.get_submodule("layer3")(x).grad_fn is not None


@pytest.mark.parametrize(
    ("name", "number", "most"), [("r2plus1d_tiny", 3, 2), ("videomae_s", 2, 1), ("i3d", 4, 3)]
)
def test_more_stages_than_there_are_are_refused_with_their_number(name, number, most):
    message = (
        f"^encoder.frozen_stages: got {number}, want -1 to {most}, the stages of {name}; encoder.frozen=true"
    )
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ClipEncoder(settings_of(name, number))
