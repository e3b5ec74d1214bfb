"""Video Swin: windows, shifts and biases by hand and token by token; its branches reversible, its memory."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.backbones.video_swin import Layout, PatchEmbed, PatchMerging, VideoSwin, WindowAttention
from model.backbones.windows import (
    fit_window,
    mask_of,
    partition,
    relative_positions,
    shift_regions,
    unpartition,
)
from model.reversible import run_stage
from model.rewire import rewire, set_beta
from model.rewired_stage import branches_of
from tools.benchmarks.trackers import SavedBytes

CPU = torch.device("cpu")
TINY = Layout(8, depths=(2, 3, 2), heads=(1, 2, 2), window=(2, 3, 3))
CLIP = (3, 3, 6, 29, 36)  # 3x8x9 tokens, then 3x4x5, then 3x2x3: padded, shifted, shrunken


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter drawn at random, biases and norms too, large enough for the branches to matter."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def tokens_of(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*(range(extent) for extent in size)))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((16, 8, 28), (8, 7, 7), (4, 3, 3)),
        ((8, 7, 8), (8, 7, 7), (0, 0, 3)),  # no longer than the window: not shifted
        ((5, 4, 30), (5, 4, 7), (0, 0, 3)),  # shorter: the window shrinks
    ],
)
def test_window_fits_the_tokens(size, window, shift):
    assert fit_window(size, (8, 7, 7), (4, 3, 3)) == (window, shift)


def test_windows_hold_their_tokens_in_order():
    size, window = (2, 4, 6), (1, 2, 3)
    x = torch.arange(2 * 2 * 4 * 6 * 5).view(2, *size, 5)
    windows = partition(x, window)
    assert windows.shape == (2, 8, 6, 5)
    assert torch.equal(unpartition(windows, window, size), x)
    for number, corner in enumerate(product(range(0, 2, 1), range(0, 4, 2), range(0, 6, 3))):
        for position, inside in enumerate(tokens_of(window)):
            t, h, w = (a + b for a, b in zip(corner, inside, strict=True))
            assert torch.equal(windows[:, number, position], x[:, t, h, w])


def test_relative_positions_of_a_flat_window_by_hand():
    # Offsets of query and key (h, w): (-1, -1) is row 0, (-1, 0) row 1, ..., (0, 0) row 4, ..., (1, 1) row 8.
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_positions((1, 2, 2)).tolist() == expected


def test_relative_positions_number_offsets_in_order():
    index, tokens = relative_positions((2, 3, 2)), tokens_of((2, 3, 2))
    offsets = {}
    for (i, query), (j, key) in product(enumerate(tokens), repeat=2):
        offsets[tuple(a - b for a, b in zip(query, key, strict=True))] = index[i, j].item()
    assert [offsets[offset] for offset in sorted(offsets)] == list(range(3 * 5 * 3))


def test_shift_mask_of_one_axis_by_hand():
    # Tokens 0..5 rolled by one are 1 2 3 | 4 5 0: in the last window, 0 is no neighbour of 4 and 5.
    mask = mask_of(shift_regions((1, 1, 6), (1, 1, 3), (0, 0, 1), CPU))
    apart = [[False, False, True], [False, False, True], [True, True, False]]
    assert mask.tolist() == [[[False] * 3] * 3, apart]


def neighbours(query: tuple[int, ...], key: tuple[int, ...], size, window, shift) -> bool:
    """Whether they share a window of the rolled tokens, and lie as far apart there as before the roll."""
    for q, k, extent, width, step in zip(query, key, size, window, shift, strict=True):
        rolled_q, rolled_k = (q - step) % extent, (k - step) % extent
        if rolled_q // width != rolled_k // width or rolled_q - rolled_k != q - k:
            return False
    return True


def number_in_window(token: tuple[int, ...], size, window, shift) -> int:
    """The number of a token within its window."""
    number = 0
    for axis, width in enumerate(window):
        number = number * width + (token[axis] - shift[axis]) % size[axis] % width
    return number


def attention_by_tokens(attention: WindowAttention, x: Tensor) -> Tensor:
    """The module by its definition, query by query; x: (t, h, w, D) float64."""
    window, shift = fit_window(x.shape[:3], attention.window, attention.shift)
    size = tuple(math.ceil(extent / width) * width for extent, width in zip(x.shape[:3], window, strict=True))
    padded = x.new_zeros(*size, x.shape[3])
    padded[: x.shape[0], : x.shape[1], : x.shape[2]] = x
    qkv = attention.qkv(padded).view(*size, 3, attention.heads, -1)
    in_full_window = tokens_of(attention.window)  # a shrunken window takes the first tokens of the full one
    result = torch.zeros_like(x)
    for query in tokens_of(x.shape[:3]):
        keys = [key for key in tokens_of(size) if neighbours(query, key, size, window, shift)]
        positions = [in_full_window[number_in_window(key, size, window, shift)] for key in keys]
        own = in_full_window[number_in_window(query, size, window, shift)]
        row = torch.zeros(len(keys), dtype=torch.long)
        for axis, width in enumerate(attention.window):
            row = row * (2 * width - 1) + torch.tensor(
                [own[axis] - other[axis] + width - 1 for other in positions]
            )
        picked = torch.stack([qkv[key] for key in keys])  # (keys, 3, heads, D / heads)
        scores = (qkv[query][0] * picked[:, 1]).sum(-1) / math.sqrt(picked.shape[-1])
        weights = (scores + attention.relative_position_bias_table[row]).softmax(dim=0)
        result[query] = attention.proj((weights[..., None] * picked[:, 2]).sum(0).flatten())
    return result


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize(
    "size",
    [
        (4, 4, 6),  # whole windows
        (3, 5, 4),  # padded in all directions
        (2, 3, 6),  # one window in t: not shifted there
        (1, 3, 5),  # a window shrunken in t, padding in h and w
        (4, 3, 2),  # shrunken in w: tokens of 2x2x2 have the biases of the first eight of 2x2x3
        (1, 1, 2),  # one shrunken window
    ],
)
def test_attention_is_its_definition_token_by_token(size, shift):
    attention = randomised(WindowAttention(4, heads=2, window=(2, 2, 3), shift=shift)).double()
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([attention_by_tokens(attention, sample) for sample in x])
        # Roundings of float64; exp(-100) = 4e-44 stands for the weight of tokens that are no neighbours.
        assert torch.allclose(attention(x), expected, rtol=0, atol=1e-13)


def test_patches_at_the_border_are_filled_with_zeros():
    embed = randomised(PatchEmbed((2, 4, 4), 6)).double()
    clip = torch.randn(1, 3, 3, 6, 9, dtype=torch.float64)
    filled = torch.zeros(1, 3, 4, 8, 12, dtype=torch.float64)
    filled[:, :, :3, :6, :9] = clip
    tokens = embed(clip)
    assert tokens.shape == (1, 2, 2, 3, 6)
    # Roundings of float64: the two lie in memory in other orders, for which some CPUs have other kernels.
    assert torch.allclose(tokens, embed(filled), rtol=0, atol=1e-13)
    patch = filled[0, :, 2:, 4:, 8:]
    projected = (embed.proj.weight * patch).sum((1, 2, 3, 4)) + embed.proj.bias
    assert torch.allclose(tokens[0, 1, 1, 2], embed.norm(projected), rtol=0, atol=1e-13)


def test_merging_puts_the_left_column_first_and_fills_with_zeros():
    merging = randomised(PatchMerging(2))
    x = torch.randn(1, 2, 3, 3, 2)
    zero = torch.zeros(2)
    corners = {
        (0, 0): [x[0, 1, 0, 0], x[0, 1, 1, 0], x[0, 1, 0, 1], x[0, 1, 1, 1]],
        (0, 1): [x[0, 1, 0, 2], x[0, 1, 1, 2], zero, zero],
        (1, 0): [x[0, 1, 2, 0], zero, x[0, 1, 2, 1], zero],
    }
    y = merging(x)
    assert y.shape == (1, 2, 2, 2, 4)
    for (h, w), four in corners.items():
        expected = merging.reduction(merging.norm(torch.cat(four)))
        assert torch.allclose(y[0, 1, h, w], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "parameters", "rate"),
    [  # torchvision's numbers of parameters less `head`
        ("video_swin_t", 768, 28_158_070 - 400 * 769, 0.1),
        ("video_swin_s", 768, 49_816_678 - 400 * 769, 0.2),
        ("video_swin_b", 1024, 88_048_984 - 400 * 1025, 0.3),
    ],
)
def test_networks_have_the_published_sizes(name, features, parameters, rate):
    with torch.device("meta"):
        network = build_backbone(name)
        y = network(torch.empty(2, 3, 31, 224, 200))
    assert network.num_features == features and y.shape == (2, features, 16, 7, 7)
    assert network.pool(y).shape == (2, features, 16)
    assert sum(p.numel() for p in network.parameters()) == parameters
    rates = [block.drop_path.rate for name in network.stage_names for block in getattr(network, name)]
    assert (rates[0], rates[-1]) == (0, rate) and rates == sorted(rates)


def test_weights_start_as_torchvision_starts_them():
    torch.manual_seed(0)
    block = VideoSwin(Layout(96, (1,), (3,)), 0.0).layer1[0]
    # 27,648 and 7,605 samples know a standard deviation to 0.4 % and 0.8 %.
    assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.04)
    assert not block.mlp.fc1.bias.any()


def test_a_block_adds_attention_and_then_the_mlp():
    block = randomised(VideoSwin(TINY, 0.0)).layer2[1]
    x = torch.randn(2, 3, 4, 5, 16)
    middle = x + block.attn(block.norm1(x))
    assert torch.equal(block(x), middle + block.mlp(block.norm2(middle)))


def reference(network: VideoSwin, x: Tensor, beta: float) -> Tensor:
    """The rewired network under plain autograd, by the formula of model/reversible.py."""
    x = network.patch_embed(x)
    for number, name in enumerate(network.stage_names):
        x = x if number == 0 else getattr(network, f"merge{number}")(x)
        previous = current = x
        for block in getattr(network, name):
            for branch in block.branches:
                previous, current = current, (1 - beta) * current + beta * previous + branch(current)
        x = (current + beta * previous) / (1 + beta)
    return network.norm(x).movedim(4, 1)


def gradients(network: VideoSwin, function, clip: Tensor) -> list[Tensor]:
    """Output and the gradients of the clip and of all parameters, from one seed of drop-path."""
    torch.manual_seed(7)
    network.zero_grad()
    clip = clip.clone().requires_grad_()
    y = function(clip)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), clip.grad, *(p.grad.clone() for p in network.parameters())]


@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
def test_gradients_of_the_rewired_network_are_those_of_plain_autograd(beta):
    network = randomised(VideoSwin(TINY, drop_path=0.5)).double().train()
    clip = torch.randn(CLIP, dtype=torch.float64)
    expected = gradients(network, lambda x: reference(network, x, beta), clip)
    rewire(network, beta=beta)
    for found, wanted in zip(gradients(network, network, clip), expected, strict=True):
        # The inverse at 0.8 multiplies roundings of 1e-16 by 0.8^-6 at most; sums over tokens do the rest.
        assert torch.linalg.vector_norm(found - wanted) <= 1e-10 * torch.linalg.vector_norm(wanted)


def test_one_stage_inverts_with_drop_path_on():
    stage = randomised(VideoSwin(TINY, drop_path=0.5)).double().train().layer2
    x, errors = torch.randn(4, 3, 4, 5, 16, dtype=torch.float64, requires_grad=True), []
    y = run_stage(branches_of(list(stage)), x, beta=0.7, invert=True, on_reconstruction_error=errors.append)
    y.sum().backward()
    assert errors[0] < 1e-12  # 1e-16 / 0.7^6, and the slope of the branches


def test_rewired_at_beta_zero_is_the_plain_network_bit_for_bit():
    network, clip = randomised(VideoSwin(TINY, drop_path=0.5)).train(), torch.randn(CLIP)
    rewired = copy.deepcopy(network)
    rewire(rewired, beta=0.0)
    found = []
    for one in (network, rewired):
        torch.manual_seed(3)
        found.append(one(clip))
    assert torch.equal(found[0], found[1])
    assert rewired.state_dict().keys() == network.state_dict().keys()
    set_beta(rewired, 1.0)
    assert not torch.equal(rewired(clip), found[0])


def test_beta_one_is_the_network_of_re2tal():
    network = randomised(VideoSwin(TINY, 0.0)).double().eval()
    clip = torch.randn(CLIP, dtype=torch.float64)
    x = network.patch_embed(clip)
    for number, name in enumerate(network.stage_names):
        x1 = x2 = x if number == 0 else getattr(network, f"merge{number}")(x)
        for block in getattr(network, name):
            y1 = x1 + block.attn(block.norm1(x2))
            x1, x2 = y1, x2 + block.mlp(block.norm2(y1))
        x = (x1 + x2) / 2
    rewire(network, beta=1.0, fixed_point_states=False)
    assert torch.allclose(network(clip), network.norm(x).movedim(4, 1), rtol=1e-12, atol=1e-12)


def test_drop_path_leaves_out_branches_of_single_samples():
    block = randomised(VideoSwin(TINY, drop_path=0.5)).train().layer3[1]  # the last: 0.5
    x = torch.randn(1, 3, 2, 3, 32).expand(64, -1, -1, -1, -1)
    residual, whole = block.attention_branch(x), block.attn(block.norm1(x[:1]))[0]
    dropped = residual.flatten(1).abs().amax(1) == 0
    assert 12 < dropped.sum() < 52  # binomial: five standard deviations of 4 around 32
    assert torch.allclose(
        residual[~dropped], 2 * whole.expand(int((~dropped).sum()), -1, -1, -1, -1), atol=1e-4
    )
    again = block.attention_branch(x).flatten(1).abs().amax(1) == 0
    assert not torch.equal(again, dropped)


@pytest.mark.parametrize("rewired", [False, True])
def test_a_bfloat16_network_returns_bfloat16(rewired):
    network = VideoSwin(TINY, 0.1)
    if rewired:
        rewire(network, beta=1.0)
    clip = torch.randn(CLIP)
    expected, y = network.eval()(clip), network.bfloat16()(clip.bfloat16())
    assert y.dtype == torch.bfloat16
    # Seven blocks round to 8 bits each; the output is normalised to size 1.
    assert (y.float() - expected).square().mean().sqrt() < 0.05


def saved_bytes(network: nn.Module, clip: Tensor) -> int:
    """What autograd keeps when the forward pass ends."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    with SavedBytes(known) as saved:
        y = network(clip)
    held = saved.now
    del y
    return held


@pytest.mark.slow
def test_rewired_swin_t_keeps_under_40_mb_of_a_32_frame_clip():
    network = build_backbone("video_swin_t").train()
    rewire(network, beta=1.0)
    # float32: the clip (4.8 MB), two states of every stage (9.6, 4.8, 2.4, 1.6 MB), some for the last norm.
    assert saved_bytes(network, torch.randn(1, 3, 32, 112, 112)) < 24e6


def test_depth_adds_nothing_to_what_a_rewired_network_keeps():
    held = []
    for depths in ((2, 2), (4, 2), (2, 4)):
        network = VideoSwin(Layout(8, depths, heads=(1, 2), window=(2, 3, 3)), 0.1).train()
        rewire(network, beta=1.0)
        held.append(saved_bytes(network, torch.randn(1, 3, 8, 32, 32)))
    assert held[0] == held[1] == held[2]


def test_autocast_keeps_attention_in_low_precision_once():
    attention = WindowAttention(8, heads=2, window=(2, 8, 8), shift=(0, 0, 0))
    x = torch.randn(1, 4, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        held = saved_bytes(attention, x)
    probabilities = 2 * (2 * 2 * 128**2)  # two bytes each: windows, heads, tokens, tokens
    assert probabilities < held < 1.5 * probabilities
