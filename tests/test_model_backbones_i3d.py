"""I3D: outputs of the published model, names of its three forms, padding by hand, recomputed modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BACKBONES, WITHOUT_RESIDUALS, build_backbone
from model.backbones.i3d import StridedConvolution, max_pool, pad_same
from model.network import ClipEncoder
from model.rewire import recompute_modules, rewire
from model.settings import EncoderSettings
from tools.weights.matching import best_match, match_weights

SHAPES = ((16, 112, 112), (32, 96, 128), (17, 64, 64))


@pytest.fixture(scope="module")
def published(shared_real) -> dict[str, Tensor]:
    return load_file(shared_real / "weights" / "i3d_kinetics400_rgb.safetensors")


@pytest.fixture(scope="module")
def network(published) -> nn.Module:
    network = build_backbone("i3d").eval()
    matched = best_match(published, backbone=None, source=None)
    assert (matched.backbone, matched.source, matched.share) == (
        "i3d",
        "jax-i3d",
        1,
    ) and not matched.unexpected
    network.load_state_dict(matched.tensors)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("case", range(3))
def test_features_and_class_scores_are_those_of_the_published_network(case, network, published, shared_real):
    golden = load_file(shared_real / "weights" / "i3d_golden.safetensors")
    length, height, width = SHAPES[case]
    numbers = torch.arange(3 * length * height * width, dtype=torch.float64)
    x = torch.cos(0.37 * numbers).float().view(1, 3, length, height, width)
    with torch.no_grad():
        y = network(x)
    wanted = golden[f"case{case}.mixed_5c"]
    # float32 sums of up to 9,000 products in another order: measured 2e-6 of the largest feature
    assert y.shape == wanted.shape and (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    kernel = published["params|Logits/Conv3d_0c_1x1|Conv_0|kernel"].flatten(0, 3)
    pooled = F.avg_pool3d(y, (2, *y.shape[3:]), 1).flatten(2).mean(2)  # both poolings are linear
    logits = pooled @ kernel + published["params|Logits/Conv3d_0c_1x1|Conv_0|bias"]
    wanted = golden[f"case{case}.logits"]
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def in_tensorflows_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and layout as the TensorFlow form has them, with its classifier."""
    branches = {
        "b0": "Branch_0/Conv3d_0a_1x1",
        "b1a": "Branch_1/Conv3d_0a_1x1",
        "b1b": "Branch_1/Conv3d_0b_3x3",
        "b2a": "Branch_2/Conv3d_0a_1x1",
        "b2b": "Branch_2/Conv3d_0b_3x3",
        "b3b": "Branch_3/Conv3d_0b_1x1",
    }
    layers = {
        "conv3d.weight": "conv_3d/w",
        "bn.bias": "batch_norm/beta",
        "bn.running_mean": "batch_norm/moving_mean",
        "bn.running_var": "batch_norm/moving_variance",
    }
    renamed = {"RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/w": torch.zeros(1, 1, 1, 1024, 400)}
    for name, tensor in weights.items():
        *unit, layer, kind = name.split(".")
        if f"{layer}.{kind}" not in layers:
            continue
        path = "/".join([unit[0], *(branches[part] for part in unit[1:])])
        if path.startswith("Mixed_5b"):
            path = path.replace("Branch_2/Conv3d_0b_3x3", "Branch_2/Conv3d_0a_3x3")
        tensor = tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor.view(1, 1, 1, 1, -1)
        renamed[f"RGB/inception_i3d/{path}/{layers[f'{layer}.{kind}']}"] = tensor
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("source", ["kinetics-i3d", "pytorch-i3d"])
def test_the_other_forms_give_the_same_weights(source, network):
    own = network.state_dict()
    theirs = {**own, "logits.conv3d.weight": torch.zeros(400, 1024, 1, 1, 1)}
    if source == "kinetics-i3d":
        theirs = in_tensorflows_names(own)
        assert "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w" in theirs
    found = best_match(theirs, backbone=None, source=None)
    assert (found.backbone, found.source, found.share, found.unexpected) == ("i3d", source, 1, [])
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.tensors.items())


def test_a_tensor_of_no_known_name_is_left_over_and_named(published):
    found = match_weights({**published, "params|Mixed_9z|Conv_0|kernel": torch.zeros(3)}, "i3d", "jax-i3d")
    assert found is not None and found.unexpected == ["Mixed_9z.conv3d.weight"]


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (2, 2), (3, 1)])
def test_same_padding_divides_by_the_stride_and_puts_the_odd_zero_behind(size, kernel, stride):
    """TensorFlow's rule, counted by hand: outputs are ceil(size / stride), the rest is split, more behind."""
    x = torch.arange(1.0, size + 1).view(1, 1, size, 1, 1).expand(1, 1, size, 3, 3)
    padded = pad_same(x, (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0].tolist()
    outputs = -(-size // stride)
    missing = max((outputs - 1) * stride + kernel - size, 0)
    before = missing // 2
    assert padded == [0] * before + list(range(1, size + 1)) + [0] * (missing - before)
    assert max_pool(x, (kernel, 1, 1), (stride, 1, 1)).shape[2] == outputs
    assert StridedConvolution(1, 2, (kernel, 1, 1), (stride, 1, 1))(x).shape[2] == outputs


def encoder_gradients(network: nn.Module, clips: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(clips).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.slow
def test_recomputed_modules_give_the_gradients_of_the_plain_network_and_store_less():
    torch.manual_seed(0)
    plain, small = build_backbone("i3d").eval(), build_backbone("i3d").eval()
    small.load_state_dict(plain.state_dict())
    recompute_modules(small)
    clips, saved = torch.randn(1, 3, 8, 32, 32), {}
    for name, network in (("plain", plain), ("small", small)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):  # noqa: B023
            y = network(clips)
        saved[name] = sum(sizes)
        del y
    for a, b in zip(encoder_gradients(plain, clips), encoder_gradients(small, clips), strict=True):
        assert torch.equal(a, b)
    assert saved["small"] < 0.5 * saved["plain"]


@pytest.mark.slow
def test_reversing_is_refused_with_the_reason_and_the_encoder_recomputes_instead():
    with pytest.raises(ValueError, match="reversible: i3d has no residual sum.*set it to false"):
        EncoderSettings(backbone="i3d")
    with pytest.raises(ValueError, match="I3D has no residual block"):
        rewire(build_backbone("i3d"))
    encoder = ClipEncoder(EncoderSettings(backbone="i3d", reversible=False))
    names = encoder.backbone.recomputed_names
    assert len(names) == 12 and all("forward" in vars(encoder.backbone.get_submodule(n)) for n in names)


@pytest.mark.slow
def test_the_list_of_backbones_without_residuals_is_right():
    with torch.device("meta"):
        assert {name for name in BACKBONES if not build_backbone(name).stage_names} == WITHOUT_RESIDUALS


def test_pixels_reach_it_between_minus_one_and_one():
    network = build_backbone("i3d")
    pixels = np.array([0.0, 127.5, 255.0])
    assert ((pixels / 255 - network.mean[0]) / network.std[0]).tolist() == [-1, 0, 1]
