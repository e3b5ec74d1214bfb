"""Batch norms beside bfloat16 weights: float32 statistics, torch's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.backbones import build_backbone
from model.backbones.batch_norm import BatchNorm2d, BatchNorm3d
from model.recompute import frozen_statistics
from model.rewire import rewire


def pair(kind: type[nn.Module], like: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Ours with bfloat16 weights and float32 statistics; torch's in float32, with the same numbers."""
    ours, torchs = kind(6), like(6)
    torch.manual_seed(0)
    for parameter, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        parameter.data = torch.randn(6).bfloat16()
        other.data = parameter.data.float()
    for norm in (ours, torchs):
        norm.running_mean.copy_(torch.arange(6.0))
        norm.running_var.copy_(torch.arange(1.0, 7.0))
    return ours, torchs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "like"), [(BatchNorm2d, nn.BatchNorm2d), (BatchNorm3d, nn.BatchNorm3d)])
def test_bfloat16_weights_do_not_round_the_statistics(kind, like, training):
    ours, torchs = (norm.train(training) for norm in pair(kind, like))
    x = torch.randn(
        4, 6, *[3] * (2 if kind is BatchNorm2d else 3), generator=torch.Generator().manual_seed(1)
    )
    y, expected = ours(x.bfloat16()), torchs(x.bfloat16().float())
    assert y.dtype == torch.bfloat16 and ours.running_var.dtype == torch.float32
    assert torch.allclose(y.float(), expected, rtol=2**-7, atol=2**-7)  # one rounding of the output
    for (name, buffer), other in zip(ours.named_buffers(), torchs.buffers(), strict=True):
        assert torch.allclose(buffer, other), name


def test_frozen_statistics_stay():
    norm, _ = pair(BatchNorm2d, nn.BatchNorm2d)
    before = [buffer.clone() for buffer in norm.buffers()]
    with frozen_statistics(norm):
        norm(torch.randn(4, 6, 3, 3).bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r2plus1d_tiny", "slowfast_50", "tsm_r18", "video_swin_t", "videomae_s"])
def test_every_family_trains_with_bfloat16_parameters_and_float32_buffers(name):
    network = build_backbone(name)
    rewire(network)
    for parameter in network.parameters():  # as DeepSpeed's bf16 does: buffers stay
        parameter.data = parameter.data.bfloat16()
    y = network.pool(network(torch.randn(1, 3, 8, 32, 32).bfloat16()))
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
