"""TSM: the shift by loops, the network by torch's functions, published sizes, reversible with drop-path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import build_backbone
from model.backbones.tsm import TSM, BasicBlock, Block, Bottleneck, Layout, temporal_shift
from model.reversible import run_stage
from model.rewire import rewire
from model.rewired_stage import branches_of

KINDS: list[type[Block]] = [BasicBlock, Bottleneck]


def tiny(block: type[Block], drop_path: float = 0.0) -> TSM:
    """Two stages of two blocks; norms with statistics and weights drawn at random."""
    torch.manual_seed(1)
    network = TSM(Layout(block, (2, 2), widths=(8, 16), drop_path=drop_path))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return network


def relative_error(got: Tensor, want: Tensor) -> float:
    return (torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)).item()


@pytest.mark.parametrize("channels", [8, 19, 5])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_shift_brings_channels_of_the_next_and_the_previous_frame(frames, channels):
    x, divisor = torch.randn(2, frames, channels, 3, 2), 8
    fold = channels // divisor
    expected = torch.zeros_like(x)
    for frame in range(frames):
        for channel in range(channels):
            source = frame + 1 if channel < fold else frame - 1 if channel < 2 * fold else frame
            if 0 <= source < frames:
                expected[:, frame, channel] = x[:, source, channel]
    assert torch.equal(temporal_shift(x, divisor), expected)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance = (t[:, None, None] for t in (norm.running_mean, norm.running_var))
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def written_out(network: TSM, clip: Tensor) -> Tensor:
    """The network in evaluation mode by its equations; clip: (3, L, H, W). Returns (D, L, h, w)."""
    stem = network.stem
    x = F.relu(batch_norm(F.conv2d(clip.transpose(0, 1), stem.conv1.weight, stride=2, padding=3), stem.bn1))
    x = F.max_pool2d(x, 3, 2, 1)  # (L, d, h, w)
    for stage, block in ((s, b) for s in network.stage_names for b in getattr(network, s)):
        stride = 2 if stage != "layer1" and block is getattr(network, stage)[0] else 1
        y = temporal_shift(x[None], 8)[0]
        if isinstance(block, Bottleneck):
            y = F.relu(batch_norm(F.conv2d(y, block.conv1.weight), block.bn1))
            y = F.relu(batch_norm(F.conv2d(y, block.conv2.weight, stride=stride, padding=1), block.bn2))
            y = batch_norm(F.conv2d(y, block.conv3.weight), block.bn3)
        else:
            y = F.relu(batch_norm(F.conv2d(y, block.conv1.weight, stride=stride, padding=1), block.bn1))
            y = batch_norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
        if block.downsample is not None:
            x = batch_norm(F.conv2d(x, block.downsample[0].weight, stride=stride), block.downsample[1])
        x = F.relu(x + y)
    return x.transpose(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_network_is_its_equations_written_out(kind):
    network, clips = tiny(kind).double().eval(), torch.randn(2, 3, 3, 40, 32).double()
    expected = torch.stack([written_out(network, clip) for clip in clips])
    assert network(clips).shape == expected.shape == (2, network.num_features, 3, 5, 4)
    assert relative_error(network(clips), expected) < 1e-12  # roundings of float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "parameters", "transitions"),
    [
        ("tsm_r18", 512, 11_176_512, ["layer2.0", "layer3.0", "layer4.0"]),  # torchvision's less `fc`
        ("tsm_r50", 2048, 23_508_032, ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
    ],
)
def test_networks_have_the_published_sizes(name, features, parameters, transitions):
    with torch.device("meta"):
        network = build_backbone(name)
        assert network(torch.empty(2, 3, 8, 224, 200)).shape == (2, features, 8, 7, 7)
    assert network.num_features == features
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert [row.name for row in rewire(network) if row.kind == "transition"] == transitions


def test_a_frame_hears_of_others_one_frame_further_per_block():
    network, clip = tiny(BasicBlock).eval(), torch.randn(1, 3, 11, 32, 32)
    other = clip.clone()
    other[:, :, 5] = torch.randn(1, 3, 32, 32)
    changed = (network(clip) - network(other)).abs().amax((0, 1, 3, 4)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(1, 10))  # four blocks either way


def test_weights_start_as_torchvision_starts_them():
    torch.manual_seed(0)
    weight = build_backbone("tsm_r18").layer4[1].conv2.weight
    # He et al.: standard deviation sqrt(2 / fan_out); 2.4 M samples know it to 0.1 %.
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_features_come_in_the_dtype_of_the_clip_and_are_pooled_over_space():
    network = tiny(Bottleneck).bfloat16()
    features = network(torch.randn(2, 3, 2, 32, 32).bfloat16())
    assert features.dtype == torch.bfloat16
    assert torch.equal(network.pool(features), features.mean((3, 4)))
    rewire(network)
    assert network(torch.randn(2, 3, 2, 32, 32).bfloat16()).dtype == torch.bfloat16


def recurrence(blocks: list[Block], x: Tensor, beta: float) -> Tensor:
    """The reversible stage of a network with a ReLU after the addition, under plain autograd."""
    previous = current = x
    for block in blocks:
        branch = F.leaky_relu(block.residual(current), 1 - beta)
        previous, current = current, F.leaky_relu((1 - beta) * current + beta * previous + branch, beta)
    return (current + beta * previous) / (1 + beta)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.9, 1.0])
def test_gradients_through_the_inverse_are_those_of_plain_autograd_with_drop_path_on(kind, beta):
    torch.manual_seed(1)
    width, outputs = 16 // kind.expansion, 16
    blocks = [kind(outputs, width, 1, shift_divisor=8, drop_path=0.4).double() for _ in range(3)]
    start, direction = torch.randn(2, 4, 3, 16, 5, 4, dtype=torch.float64)
    parameters = [p for block in blocks for p in block.parameters()]
    results = []
    for inverted in (True, False):
        torch.manual_seed(2)
        x = start.clone().requires_grad_()
        if inverted:
            y = run_stage(branches_of(blocks), x, beta=beta, post_activation=True, invert=True)
        else:
            y = recurrence(blocks, x, beta)
        for parameter in parameters:
            parameter.grad = None
        y.backward(direction)
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in parameters)])
    # float64 states, 3 branches: the inverse loses a few digits of 16.
    assert all(relative_error(got, want) < 1e-10 for got, want in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rewired_at_beta_zero_it_is_the_plain_network_bit_for_bit(kind):
    network, clip = tiny(kind, drop_path=0.5), torch.randn(3, 3, 4, 32, 32)
    torch.manual_seed(3)
    plain = network(clip)
    table = rewire(network, beta=0)
    torch.manual_seed(3)
    assert torch.equal(network(clip), plain)
    kinds = {row.name: row.kind for row in table}
    assert (kinds["stem"], kinds["layer2.0"], kinds["layer2.1"]) == ("recomputed", "transition", "reversible")
