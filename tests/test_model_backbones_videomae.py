"""VideoMAE's ViT: its equations written out, positions by hand, both branches reversible with drop-path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.backbones.drop_path import DropPath, rising_rates
from model.backbones.videomae import Block, Layout, VideoMAE, position_table, sine_table
from model.reversible import run_stage
from model.rewire import rewire
from model.rewired_stage import branches_of

TINY = Layout(features=12, depth=2, heads=3, image_side=32)
DROPPING = Layout(features=12, depth=3, heads=3, drop_path=0.5, image_side=32)
CPU = torch.device("cpu")


def randomised(network: nn.Module) -> nn.Module:
    """Every parameter drawn at random, biases and norms too, large enough for the branches to matter."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def relative_error(got: Tensor, want: Tensor) -> float:
    return (torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)).item()


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def written_out(block: Block, x: Tensor, heads: int) -> Tensor:
    """A block by its equations, head by head; x: (tokens, D)."""
    normed, width = layer_norm(x, block.norm1), x.shape[1] // heads
    query, key, value = (normed @ part.T for part in block.attn.qkv.weight.chunk(3))
    query, value = query + block.attn.q_bias, value + block.attn.v_bias
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        outputs.append(torch.softmax(scores, dim=1) @ value[:, part])
    x = x + torch.cat(outputs, dim=1) @ block.attn.proj.weight.T + block.attn.proj.bias
    hidden = layer_norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def test_network_is_its_equations_written_out():
    network = randomised(VideoMAE(TINY)).double().eval()
    clip = torch.randn(1, 3, 4, 32, 32).double()
    features, tokens = network(clip)[0], []
    for t in range(2):
        for y in range(2):
            for x in range(2):
                tubelet = clip[0, :, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
                tokens.append((network.patch_embed.proj.weight * tubelet).sum((1, 2, 3, 4)))
    states = torch.stack(tokens) + network.patch_embed.proj.bias + sine_table(8, 12, CPU)
    for block in network.blocks:
        states = written_out(block, states, 3)
    expected = layer_norm(states, network.norm).T.view(12, 2, 2, 2)
    assert relative_error(features, expected) < 1e-12  # roundings of float64


@pytest.mark.parametrize(
    ("name", "features", "depth", "heads", "parameters"),
    [
        ("videomae_s", 384, 12, 6, 21_879_936),
        ("videomae_b", 768, 12, 12, 86_227_200),  # the authors' 86,534,800 less `head`
        ("videomae_l", 1024, 24, 16, 303_860_736),
    ],
)
def test_networks_have_the_published_sizes(name, features, depth, heads, parameters):
    with torch.device("meta"):
        network = build_backbone(name)
        assert network(torch.empty(2, 3, 16, 224, 224)).shape == (2, features, 8, 14, 14)
    assert network.num_features == features
    assert len(network.blocks) == depth and network.blocks[0].attn.heads == heads
    assert sum(p.numel() for p in network.parameters()) == parameters
    rates = [block.drop_path.rate for block in network.blocks]
    assert (rates[0], rates[-1]) == (0, 0.1) and rates == sorted(rates)


def test_weights_start_as_the_authors_start_them():
    torch.manual_seed(0)
    network = VideoMAE(Layout(features=96, depth=1, heads=2))
    # 27,648 samples know a standard deviation to 0.4 %.
    assert network.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not network.blocks[0].mlp.fc1.bias.any()


def test_positions_are_sines_and_cosines_of_the_token_number():
    table = sine_table(50, 6, CPU)
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_a_longer_clip_keeps_the_positions_of_the_shorter_one():
    long = position_table((4, 3, 3), 3, 8, CPU)
    assert torch.equal(long, sine_table(36, 8, CPU))
    assert torch.equal(long[:18], position_table((2, 3, 3), 3, 8, CPU))


def cubic_weight(distance: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    d = abs(distance)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_another_image_size_interpolates_the_positions_of_each_step():
    side, height, width = 4, 3, 6
    table = sine_table(2 * side * side, 8, CPU).double().view(2, side, side, 8)
    got = position_table((2, height, width), side, 8, CPU).view(2, height, width, 8)
    for t, y, x in [(0, 0, 0), (0, 1, 2), (1, 2, 5), (1, 0, 3)]:
        row, column = (y + 0.5) * side / height - 0.5, (x + 0.5) * side / width - 0.5
        expected = torch.zeros(8, dtype=torch.float64)
        for i in range(math.floor(row) - 1, math.floor(row) + 3):
            for j in range(math.floor(column) - 1, math.floor(column) + 3):
                row_of_table = table[t, min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                expected += cubic_weight(row - i) * cubic_weight(column - j) * row_of_table
        assert torch.allclose(got[t, y, x].double(), expected, atol=1e-6)


def test_tokens_are_ordered_by_their_positions_alone():
    clip = torch.randn(1, 3, 4, 32, 32)
    swapped = clip.flip(2).view(1, 3, 2, 2, 32, 32).flip(3).view_as(clip)  # the two steps, frames in order
    for positions in (False, True):
        layout = Layout(features=12, depth=2, heads=3, image_side=32, positions=positions)
        network = randomised(VideoMAE(layout)).eval()
        moved_with_the_pixels = torch.allclose(network(swapped).flip(2), network(clip), atol=1e-5)
        assert moved_with_the_pixels is not positions


@pytest.mark.parametrize("size", [(3, 32, 32), (4, 30, 32), (4, 32, 40), (0, 32, 32)])
def test_a_clip_that_tubelets_do_not_tile_is_refused(size):
    with pytest.raises(ValueError, match="frames, rows, columns.*want multiples of 2x16x16"):
        VideoMAE(TINY)(torch.zeros(1, 3, *size))


def test_features_come_in_the_dtype_of_the_clip_and_are_pooled_over_space():
    network = VideoMAE(TINY)
    features = network(torch.randn(2, 3, 4, 48, 32))
    assert features.shape == (2, 12, 2, 3, 2)
    assert torch.allclose(network.pool(features), features.mean((3, 4)))
    network.bfloat16()
    rewire(network)
    assert network(torch.randn(1, 3, 4, 32, 32).bfloat16()).dtype == torch.bfloat16


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
    first, second = layer(x), layer(x)
    assert set(first.unique().tolist()) == {0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(first.amin((1, 2)), first.amax((1, 2)))
    assert first.mean().item() == pytest.approx(1, abs=0.05)  # 5 standard deviations of 4,000 draws
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x


def test_drop_path_rates_rise_from_zero_and_stay_below_one():
    assert rising_rates(0.2, 3) == pytest.approx([0, 0.1, 0.2])
    assert rising_rates(0.2, 1) == [0]
    with pytest.raises(ValueError, match="got a rate of 1, want 0 <= rate < 1"):
        DropPath(1)


def recurrence(blocks: list[Block], x: Tensor, beta: float) -> Tensor:
    """The reversible stage by its equation, under plain autograd."""
    previous = current = x
    for branch in (branch for block in blocks for branch in block.branches):
        previous, current = current, (1 - beta) * current + beta * previous + branch(current)
    return (current + beta * previous) / (1 + beta)


@pytest.mark.parametrize("beta", [0.9, 1.0])
def test_gradients_through_the_inverse_are_those_of_plain_autograd_with_drop_path_on(beta):
    blocks = list(randomised(VideoMAE(DROPPING)).double().blocks)
    start, direction = torch.randn(2, 4, 8, 12, dtype=torch.float64)
    results = []
    for inverted in (True, False):
        torch.manual_seed(2)
        x = start.clone().requires_grad_()
        if inverted:
            y = run_stage(branches_of(blocks), x, beta=beta, invert=True)
        else:
            y = recurrence(blocks, x, beta)
        parameters = [p for block in blocks for p in block.parameters()]
        for parameter in parameters:
            parameter.grad = None
        y.backward(direction)
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in parameters)])
    # float64 states, 6 branches: the inverse loses a few digits of 16.
    assert all(relative_error(got, want) < 1e-10 for got, want in zip(*results, strict=True))


def test_rewired_at_beta_zero_it_is_the_plain_network_bit_for_bit():
    network, clip = randomised(VideoMAE(DROPPING)), torch.randn(3, 3, 4, 32, 32)
    torch.manual_seed(3)
    plain = network(clip)
    table = rewire(network, beta=0)
    torch.manual_seed(3)
    assert torch.equal(network(clip), plain)
    kinds = {row.name: row.kind for row in table}
    assert kinds["patch_embed"] == "recomputed" and kinds["blocks.2"] == "reversible"
