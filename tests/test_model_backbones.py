"""The R(2+1)D family: published keys and shapes, sizes of the output, a tiny one that does not mix clips."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.backbones import BACKBONES, build_backbone
from model.backbones.convolution import Convolution
from model.backbones.r2plus1d import middle_channels

KEYS = {"r2plus1d_18": "torchvision_r2plus1d_18.json", "r2plus1d_34": "etad_tsp_r2plus1d_34_backbone.json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KEYS))
def test_keys_shapes_and_order_are_those_of_the_published_network(name: str, shared_real: Path):
    published = json.loads((shared_real / "keys" / KEYS[name]).read_text())["keys"]
    expected = [(key, tuple(shape), dtype) for key, shape, dtype in published if not key.startswith("fc.")]
    own = build_backbone(name).state_dict()
    assert [(key, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in own.items()] == expected


@pytest.mark.slow
def test_batch_norm_of_the_34_is_that_of_caffe2():
    norms = [m for m in build_backbone("r2plus1d_34").modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.9)}


def test_middle_channels_spend_the_weights_of_a_full_convolution():
    assert [middle_channels(64, 64), middle_channels(64, 128), middle_channels(512, 512)] == [144, 230, 1152]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clip", "features"),
    [
        ("r2plus1d_tiny", (1, 3, 8, 32, 32), (1, 64, 2, 4, 4)),
        ("r2plus1d_tiny", (2, 3, 5, 40, 24), (2, 64, 2, 5, 3)),
        ("r2plus1d_18", (2, 3, 8, 32, 32), (2, 512, 1, 2, 2)),
    ],
)
def test_output_has_the_documented_size(name, clip, features):
    network = build_backbone(name)
    y = network(torch.randn(clip))
    assert y.shape == features
    assert y.shape[1] == network.num_features
    assert torch.allclose(network.pool(y), y.mean((3, 4))) and network.pool(y).shape == features[:3]


@pytest.mark.slow
def test_weights_start_as_torchvision_starts_them():
    torch.manual_seed(0)
    weight = build_backbone("r2plus1d_18").layer3[1].conv1[0][0].weight
    fan_out = weight.shape[0] * 9
    # He et al.: standard deviation sqrt(2 / fan_out); 1.3 M samples know it to 0.1 %.
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)


def test_tiny_encodes_a_clip_alone_as_in_a_batch():
    torch.manual_seed(0)
    network, clips = build_backbone("r2plus1d_tiny"), torch.randn(5, 3, 8, 32, 32)
    alone = torch.cat([network(clip[None]) for clip in clips])
    # Convolutions over batches of another size may sum in another order: a few roundings of float32.
    assert torch.allclose(alone, network(clips), rtol=1e-4, atol=1e-5)


def test_tiny_is_small_enough_for_two_cores():
    network = build_backbone("r2plus1d_tiny")
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 8, 32, 32))
    assert 5e6 < counter.get_total_flops() / 2 < 15e6  # multiply-adds per clip
    assert sum(p.numel() for p in network.parameters()) < 500_000
    for name in network.stage_names:
        assert sum(block.downsample is None for block in getattr(network, name)) >= 2


def moving_bars(direction: int, generator: torch.Generator) -> torch.Tensor:
    """(8, 3, 8, 32, 32): a grating of random phase that moves left or right, two pixels a frame."""
    phase = torch.rand(8, 1, 1, generator=generator) * 6.28
    frame, column = torch.arange(8.0)[None, :, None], torch.arange(32.0)[None, None, :]
    wave = torch.sin(6.28 * (column - direction * 2 * frame) / 10 + phase)  # (8, L, W)
    contrast = torch.rand(8, 1, 1, generator=generator) + 0.5
    return (wave * contrast)[:, None, :, None, :].expand(8, 3, 8, 32, 32)


@pytest.mark.slow
def test_tiny_learns_the_direction_of_motion():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, head = build_backbone("r2plus1d_tiny"), nn.Linear(64, 2)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=2e-3)
    labels = torch.tensor([0] * 8 + [1] * 8)

    def logits() -> torch.Tensor:
        clips = torch.cat([moving_bars(direction, generator) for direction in (-1, 1)])
        return head(network.pool(network(clips)).mean(2))

    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(), labels).backward()
        optimizer.step()
    with torch.no_grad():
        right = [(logits().argmax(1) == labels).float().mean().item() for _ in range(3)]
    assert sum(right) / 3 > 0.95  # single frames of the two classes are alike: chance is 0.5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("autocast", [False, True])
def test_weight_gradient_in_bfloat16_is_right_for_few_frames(frames, stride, autocast):
    layer = Convolution(32, 64, (3, 1, 1), (stride, 1, 1))
    exact, x = copy.deepcopy(layer).double(), torch.randn(2, 32, frames, 4, 4)
    exact(x.double()).square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x) if autocast else layer.bfloat16()(x.bfloat16())
    y.square().sum().backward()
    error = torch.linalg.vector_norm(layer.weight.grad - exact.weight.grad)
    assert error < 0.02 * torch.linalg.vector_norm(exact.weight.grad)  # a few roundings of 2^-8


def test_features_come_in_the_dtype_of_the_clip():
    network = build_backbone("r2plus1d_tiny").bfloat16()
    assert network(torch.randn(1, 3, 8, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_says_what_rewiring_and_pixels_need(name):
    with torch.device("meta"):
        network = build_backbone(name)
        y = network(torch.empty(1, 3, 16, 64, 64))
        assert network.pool(y).shape == y.shape[:3]
    assert y.shape[1] == network.num_features
    assert len(network.mean) == len(network.std) == 3
    names = [name for name, _ in network.named_parameters()]
    parts = [*network.stage_names, *network.recomputed_names]
    assert all(any(name.startswith(f"{part}.") for name in names) for part in parts)
