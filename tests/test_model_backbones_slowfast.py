"""SlowFast: PySlowFast's equations written out, sizes, and what becomes of it when it is rewired."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import build_backbone
from model.backbones.convolution import Convolution
from model.backbones.slowfast import Bottleneck, Layout, SlowFast, spread_frames, strided_frames
from model.reversible import run_stage
from model.rewire import rewire
from model.rewired_stage import branches_of
from tools.benchmarks.trackers import SavedBytes

TINY = Layout(
    blocks=(2, 3),
    width=16,
    slow_frames=(1, 1, 3),
    fast_frames=(5, 3, 3),
    strides=(1, 2),
    lateral_frames=5,
    recomputed=(1,),
)
LAYOUTS = {
    "pyslowfast": TINY,
    "mmaction2": replace(TINY, lateral_frames=7, lateral_norm=False, frame_rule=strided_frames),
}


def tiny(layout: Layout = TINY) -> SlowFast:
    """A small network in float64 and evaluation mode whose norms are not the identity."""
    torch.manual_seed(0)
    network = SlowFast(layout).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return network


class Reference:
    """PySlowFast's stem, fusions and stages as equations over the tensors of a state_dict.

    rewired: Re2TAL's; the ReLU lies in the branch, a skip jumps two blocks, a stage ends in the mean of both.
    """

    def __init__(self, network: SlowFast, layout: Layout, *, rewired: bool = False) -> None:
        self.weights, self.layout, self.rewired = dict(network.state_dict(keep_vars=True)), layout, rewired

    def __call__(self, x: Tensor) -> Tensor:
        layout = self.layout
        slow_numbers = [0, 5, 10, 15] if layout.lateral_norm else [0, 4, 8, 12]
        slow = self.stem("slow", x[:, :, slow_numbers], layout.slow_frames[0])
        fast = self.stem("fast", x, layout.fast_frames[0])
        for stage in (1, 2):
            lateral = self.lateral(stage, fast)
            slow = self.stage("slow", stage, torch.cat([slow, lateral], dim=1), layout.slow_frames[stage])
            fast = self.stage("fast", stage, fast, layout.fast_frames[stage])
        groups = [fast[:, :, i : i + 4].mean(dim=2) for i in (0, 4, 8, 12)]
        return torch.cat([slow, torch.stack(groups, dim=2)], dim=1)

    def norm(self, where: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.weights[f"{where}.{p}"].view(1, -1, 1, 1, 1) for p in parts)
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def stem(self, path: str, x: Tensor, frames: int) -> Tensor:
        weight = self.weights[f"{path}.stem.conv.weight"]
        assert weight.shape[2:] == (frames, 7, 7)
        x = F.conv3d(x, weight, stride=(1, 2, 2), padding=(frames // 2, 3, 3))
        x = F.relu(self.norm(f"{path}.stem.norm", x))
        return F.max_pool3d(x, kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    def lateral(self, stage: int, x: Tensor) -> Tensor:
        weight = self.weights[f"lateral{stage}.0.weight"]
        frames = self.layout.lateral_frames
        assert weight.shape == (2 * x.shape[1], x.shape[1], frames, 1, 1)
        x = F.conv3d(x, weight, stride=(4, 1, 1), padding=(frames // 2, 0, 0))
        return F.relu(self.norm(f"lateral{stage}.1", x)) if self.layout.lateral_norm else x

    def stage(self, path: str, stage: int, x: Tensor, frames: int) -> Tensor:
        name = f"{path}.layer{stage}.blocks"
        stride = (1, 2)[stage - 1]
        first, residual = self.shortcut(f"{name}.0", x, stride), self.residual(f"{name}.0", x, frames, stride)
        others = [f"{name}.{block}" for block in range(1, self.layout.blocks[stage - 1])]
        if self.rewired:
            x1 = x2 = first + F.relu(residual)
            for block in others:
                x1, x2 = x2 + F.relu(self.residual(block, x1, frames, 1)), x1
            return (x1 + x2) / 2
        x = F.relu(first + residual)
        for block in others:
            x = F.relu(x + self.residual(block, x, frames, 1))
        return x

    def shortcut(self, block: str, x: Tensor, stride: int) -> Tensor:
        x = F.conv3d(x, self.weights[f"{block}.downsample.0.weight"], stride=(1, stride, stride))
        return self.norm(f"{block}.downsample.1", x)

    def residual(self, block: str, x: Tensor, frames: int, stride: int) -> Tensor:
        a, b, c = (self.weights[f"{block}.conv{number}.0.weight"] for number in (1, 2, 3))
        assert a.shape[2:] == (frames, 1, 1)
        x = F.relu(self.norm(f"{block}.conv1.1", F.conv3d(x, a, padding=(frames // 2, 0, 0))))
        x = F.conv3d(x, b, stride=(1, stride, stride), padding=(0, 1, 1))
        x = F.relu(self.norm(f"{block}.conv2.1", x))
        return self.norm(f"{block}.conv3.1", F.conv3d(x, c))


def relative(a: Tensor, b: Tensor) -> float:
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


def clip(frames: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, frames, 28, 36, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("source", list(LAYOUTS))
def test_features_are_those_of_the_equations(source):
    network = tiny(LAYOUTS[source])
    with torch.no_grad():
        y, expected = network(clip()), Reference(network, LAYOUTS[source])(clip())
    assert y.shape == expected.shape == (2, 144, 4, 4, 5)
    assert relative(y, expected) < 1e-12  # float64, in another order of summation
    assert torch.allclose(network.pool(y), expected.flatten(3).mean(3))


@pytest.mark.slow
@pytest.mark.parametrize("source", list(LAYOUTS))
def test_rewired_at_beta_one_is_re2tal_with_its_gradients(source):
    network, other = tiny(LAYOUTS[source]), tiny(LAYOUTS[source])
    rewire(network, beta=1.0, fixed_point_states=False)
    y, expected = network(clip()), Reference(other, LAYOUTS[source], rewired=True)(clip())
    y.square().mean().backward()
    expected.square().mean().backward()
    assert relative(y, expected) < 1e-12
    for (name, p), q in zip(network.named_parameters(), other.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-9, name  # the inverse may lose a few digits of float64's 16


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_gradients_of_a_stage_equal_plain_autograd_of_its_recurrence(beta):
    stage = tiny(replace(TINY, blocks=(2, 4))).slow["layer2"].blocks
    branches = branches_of(list(stage)[1:])
    x = torch.randn(1, 128, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    previous = current = x
    for branch in branches:
        z = (1 - beta) * current + beta * previous + F.leaky_relu(branch(current), 1 - beta)
        previous, current = current, F.leaky_relu(z, beta)
    expected = (current + beta * previous) / (1 + beta)
    inputs = [x, *(p for block in list(stage)[1:] for p in block.parameters())]
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    y = run_stage(branches, x, beta=beta, post_activation=True)
    y.square().sum().backward()
    assert relative(y, expected) < 1e-12
    for tensor, gradient in zip(inputs, wanted, strict=True):
        assert relative(tensor.grad, gradient) < 1e-10  # TOLERANCE of float64 in model/inverse_accuracy.py


def test_beta_zero_gives_the_plain_features_bit_for_bit():
    network, x = tiny().float(), clip().float()
    plain = network(x)
    rewire(network, beta=0.0)
    assert torch.equal(network(x), plain)


def test_slow_frames_are_spread_as_in_pyslowfast_or_strided_as_in_mmaction2():
    assert spread_frames(4, 4).tolist() == [0]
    assert spread_frames(8, 4).tolist() == [0, 7]
    assert spread_frames(32, 4).tolist() == [0, 4, 8, 13, 17, 22, 26, 31]  # 31 / 7 = 4.43 apart
    assert strided_frames(32, 4).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("slowfast_50", "pyslowfast_SLOWFAST_8x8_R50.json"),
        ("slowfast_101", "pyslowfast_SLOWFAST_8x8_R101_101_101_c2.json"),
    ],
)
def test_it_has_as_many_numbers_as_the_published_encoder(name, file, shared_real: Path):
    published = json.loads((shared_real / "keys" / file).read_text())
    head = sum(math.prod(shape) for key, shape, _ in published["keys"] if key.startswith("head."))
    with torch.device("meta"):
        network = build_backbone(name)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == published["numel"] - head
    assert network.num_features == 2304
    assert {(m.eps, m.momentum) for m in network.modules() if isinstance(m, nn.BatchNorm3d)} == {(1e-5, 0.1)}


@pytest.mark.slow
def test_output_has_the_documented_size_on_the_meta_device():
    with torch.device("meta"):
        y = build_backbone("slowfast_101")(torch.empty(2, 3, 32, 112, 100))
    assert y.shape == (2, 2304, 8, 4, 4)


def test_pixels_are_normalised_as_the_weights_know_them():
    with torch.device("meta"):
        own, other = build_backbone("slowfast_50"), build_backbone("slowfast_50_mmaction2")
    assert (own.mean[0], own.std[0]) == (0.45, 0.225)
    assert (other.mean[0], other.std[0]) == (0.485, 0.229)


def test_a_fresh_branch_starts_at_zero_as_in_pyslowfast():
    network = SlowFast(TINY)
    assert sum(isinstance(m, Bottleneck) for m in network.modules()) == 10
    x = torch.randn(1, 16, 4, 4, 4).relu()
    assert torch.equal(network.fast["layer2"].blocks[1].eval()(x), x)


def test_a_clip_whose_frames_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="clip: got 14 frames, want a multiple of 4"):
        tiny()(clip(14))


def test_a_layout_with_too_few_kernels_is_refused():
    with pytest.raises(ValueError, match="fast_frames: got 2 values, want 3"):
        replace(TINY, fast_frames=(5, 3))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [
        ((16, 32), (3, 1, 1), (1, 1, 1)),
        ((8, 16), (5, 1, 1), (4, 1, 1)),
        ((8, 16), (7, 1, 1), (4, 1, 1)),
        ((3, 8), (5, 7, 7), (1, 2, 2)),
        ((3, 8), (3, 7, 7), (2, 2, 2)),
    ],
)
def test_weight_gradient_in_bfloat16_is_right_for_few_frames(channels, kernel, stride, frames, autocast):
    torch.manual_seed(0)
    layer = Convolution(*channels, kernel, stride)
    exact, x = copy.deepcopy(layer).double(), torch.randn(2, channels[0], frames, 7, 7)
    x = x.contiguous(memory_format=torch.channels_last_3d)  # as in the network; wrong more often then
    exact(x.double()).square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x) if autocast else layer.bfloat16()(x.bfloat16())
    y.square().sum().backward()
    assert relative(layer.weight.grad.double(), exact.weight.grad) < 0.02  # a few roundings of 2^-8


def test_rewired_it_runs_in_bfloat16_near_float64():
    network, x = tiny(), clip(4)
    rewire(network, beta=1.0)
    exact = network(x).detach()
    low = network.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert relative(low.double(), exact) < 0.05  # 10 blocks of roundings of 2^-8
    low.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.slow
def test_statistics_are_updated_once_per_step_though_stages_run_again():
    network = tiny().train()
    plain = copy.deepcopy(network)
    rewire(network, beta=0.0)
    for one in (network, plain):
        one(clip()).square().mean().backward()
    for (name, own), wanted in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(own, wanted), name
    for (name, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
        # a few roundings of float64; a convolution before a batch norm may have a gradient of nearly 0
        assert torch.linalg.vector_norm(p.grad - q.grad) < 1e-9 * q.grad.norm() + 1e-12, name


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    with SavedBytes({tensor.untyped_storage().data_ptr() for tensor in tensors}) as saved:
        y = network(x)
    return saved.now if y.requires_grad else 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_of_twice_the_depth_saves_no_more_when_rewired(stage):
    held = []
    for factor in (1, 2):
        blocks = (2 * factor, 3) if stage == 1 else (2, 3 * factor)
        network = tiny(replace(TINY, blocks=blocks))
        rewire(network)
        held.append(saved_bytes(network, clip()))
    assert held[0] == held[1]


@pytest.mark.slow
def test_the_101_saves_at_most_8_percent_of_plain_when_rewired():
    network, x = build_backbone("slowfast_101").eval(), torch.randn(1, 3, 32, 112, 112)
    plain = saved_bytes(network, x)
    rewire(network)
    assert saved_bytes(network, x) < 0.08 * plain  # 29.9 of 390.2 MiB measured
