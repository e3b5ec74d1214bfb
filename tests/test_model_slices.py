"""model/slices.py: a branch on slices of its rows against the whole branch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.backbones.transformer import TransformerBlock
from model.backbones.video_swin import Layout, VideoSwin, WindowAttention
from model.backbones.videomae import Attention
from model.network import ClipEncoder
from model.reversible import Branch, run_stage
from model.rewire import reconstruction_error, rewire, rewired_stages, set_beta
from model.rewired_stage import branches_of
from model.settings import EncoderSettings
from model.slices import SliceableBranch, slices_of
from tools.benchmarks.trackers import LiveBytes

D = 8
TOKENS = {  # name -> an attention, and the shape of its input: n and what follows
    "windows": (lambda: WindowAttention(D, 2, (2, 3, 3), (0, 0, 0)), (3, 4, 6, 6)),
    "shifted windows": (lambda: WindowAttention(D, 2, (2, 3, 3), (1, 1, 1)), (3, 4, 6, 6)),
    "shifted windows with padding": (lambda: WindowAttention(D, 2, (2, 3, 3), (1, 1, 1)), (2, 3, 5, 7)),
    "a window larger than the clip": (lambda: WindowAttention(D, 2, (8, 7, 7), (4, 3, 3)), (5, 2, 9, 3)),
    "all tokens of a sample": (lambda: Attention(D, 2), (5, 7)),
}
SLICES = {"a row each": 1, "ragged": 9_000, "nearly all": 60_000}


def blocks_of(
    name: str, drop_path: float = 0.3, dtype: torch.dtype = torch.float64
) -> list[TransformerBlock]:
    torch.manual_seed(1)
    make, _ = TOKENS[name]
    blocks = [TransformerBlock(D, make(), drop_path) for _ in range(2)]
    for parameter in nn.ModuleList(blocks).parameters():
        nn.init.normal_(parameter, std=0.3)
    return list(nn.ModuleList(blocks).to(dtype).train())


def states(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*TOKENS[name][1], D, dtype=dtype, generator=torch.Generator().manual_seed(2))


def output_and_gradients(name: str, slice_bytes: int | None, dtype=torch.float64, **options) -> list[Tensor]:
    """Of a stage with drop-path: the output, the gradient for the input, those of the parameters."""
    blocks, x = blocks_of(name, dtype=dtype), states(name).requires_grad_()
    torch.manual_seed(3)  # of drop-path
    y = run_stage(branches_of(blocks), x, slice_bytes=slice_bytes, **options)
    (y * y.detach().cos()).sum().backward()
    parameters = [p for block in blocks for p in block.parameters()]
    return [y.detach(), x.grad, *(p.grad for p in parameters)]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("size", SLICES)
@pytest.mark.parametrize("name", TOKENS)
def test_outputs_and_gradients_are_those_of_whole_branches(name, size, beta):
    found = output_and_gradients(name, SLICES[size], beta=beta, leapfrog=True)
    wanted = output_and_gradients(name, None, beta=beta, leapfrog=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TOKENS)
def test_each_branch_is_cut_where_it_takes_more_and_not_where_it_takes_less(name):
    x = states(name)
    for block in blocks_of(name):
        for branch in block.branches:
            rows = branch.rows(x)
            size = rows.count * rows.elements * 8
            assert slices_of(branch, x, torch.float64, size) is None
            assert slices_of(branch, x, torch.float64, None) is None
            assert slices_of(branch, x, torch.float64, 1).rows_per_slice == 1
            half = slices_of(branch, x, torch.float64, size // 2)
            assert 1 <= half.rows_per_slice <= max(1, rows.count // 2)
            ranges = list(half.ranges())
            assert ranges[0][0] == 0 and ranges[-1][1] == rows.count
            assert all(end == first for (_, end), (first, _) in zip(ranges, ranges[1:], strict=False))
            copy = torch.full_like(x, float("nan"))
            for first, end in ranges:
                rows.put(copy, rows.take(x, first, end), first, end)
            assert torch.equal(copy, x)


def test_a_branch_that_cannot_be_cut_runs_whole():
    linear = nn.Linear(D, D, dtype=torch.float64)
    x = torch.randn(3, D, dtype=torch.float64)
    cut, whole = (run_stage([Branch(linear, linear)], x, beta=1.0, slice_bytes=b) for b in (1, None))
    assert torch.equal(cut, whole)


@pytest.mark.slow
def test_gradients_in_bfloat16_are_summed_in_float32():
    """In bfloat16 the sum over 126 slices of a token each would lose the late ones."""
    exact = output_and_gradients("windows", None, beta=1.0)
    whole, sliced = (
        output_and_gradients("windows", size, torch.bfloat16, beta=1.0, fixed_point_states=True)
        for size in (None, 1)
    )

    def distance(found: list[Tensor]) -> float:
        pairs = zip(found[2:], exact[2:], strict=True)
        return max(float((a.double() - b).norm() / b.norm().clamp_min(1e-3)) for a, b in pairs)

    assert distance(sliced) <= 1.5 * distance(whole)


@pytest.mark.slow
def test_states_on_the_grid_are_computed_back_bit_for_bit():
    network = VideoSwin(Layout(D, (2, 2), (2, 2), window=(2, 3, 3)), drop_path=0.2)
    rewire(network, beta=1.0, slice_bytes=20_000)
    network(torch.randn(2, 3, 8, 36, 36)).sum().backward()
    assert reconstruction_error(network) == 0
    set_beta(network, 0.9)
    network(torch.randn(2, 3, 8, 36, 36)).sum().backward()
    assert 0 < reconstruction_error(network) < 1e-4


@pytest.mark.slow
def test_gradients_that_are_there_already_are_added_to():
    blocks, x = blocks_of("windows"), states("windows")
    for slice_bytes in (None, 9_000):
        for block in blocks:
            block.zero_grad()
        once, twice = [], []
        for found in (once, twice):
            torch.manual_seed(3)
            run_stage(branches_of(blocks), x, beta=1.0, slice_bytes=slice_bytes).sum().backward()
            found += [p.grad.clone() for block in blocks for p in block.parameters()]
        for one, two in zip(once, twice, strict=True):
            torch.testing.assert_close(2 * one, two, rtol=1e-9, atol=1e-11)


def test_a_frozen_block_passes_the_gradient_on():
    blocks, x = blocks_of("shifted windows"), states("shifted windows").requires_grad_()
    for block in blocks:
        block.requires_grad_(False)
    found = []
    for slice_bytes in (None, 9_000):
        torch.manual_seed(3)
        x.grad = None
        run_stage(branches_of(blocks), x, beta=1.0, slice_bytes=slice_bytes).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


class PartitionedParameter:
    """What ZeRO-3 sees of a parameter: whether it may reduce its gradient, each time one is accumulated."""

    def __init__(self, parameter: nn.Parameter):
        parameter.ds_id, parameter.ds_grad_is_ready = 0, True
        self.seen: list[bool] = []
        parameter.register_post_accumulate_grad_hook(lambda p: self.seen.append(p.ds_grad_is_ready))


def test_zero_3_may_reduce_with_the_last_slice_alone():
    blocks, x = blocks_of("windows"), states("windows")
    seen = [PartitionedParameter(p) for block in blocks for p in block.parameters()]
    run_stage(branches_of(blocks), x, beta=1.0, slice_bytes=9_000).sum().backward()
    for parameter in seen:
        assert len(parameter.seen) > 1 and parameter.seen == [False] * (len(parameter.seen) - 1) + [True]


def peak(clip: tuple[int, ...], slice_bytes: int | None) -> tuple[int, int]:
    """Most bytes alive in a backward pass above parameters and gradients, and bytes of a state."""
    torch.manual_seed(0)
    network = VideoSwin(Layout(16, (2,), (2,), window=(2, 4, 4)), drop_path=0.0)
    rewire(network, beta=1.0, slice_bytes=slice_bytes)
    x = torch.randn(1, *clip)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    known = [*network.parameters(), *network.buffers(), *(p.grad for p in network.parameters()), x]
    with LiveBytes({tensor.untyped_storage().data_ptr() for tensor in known}) as live:
        network(x).square().sum().backward()
    return live.peak, 4 * 16 * clip[1] // 2 * clip[2] // 4 * clip[3] // 4


@pytest.mark.slow
def test_the_working_set_falls_with_the_slice_down_to_some_states():
    whole, state = peak((3, 32, 64, 64), None)
    halves = [peak((3, 32, 64, 64), size)[0] for size in (2**22, 2**20, 2**17)]
    assert whole > halves[0] > halves[1] > halves[2]
    assert whole > 27 * state and halves[2] < 11 * state


@pytest.mark.slow
def test_the_working_set_of_a_slice_does_not_grow_with_the_clip():
    """What grows are states: those of twice the clip are twice as large, and nothing else is."""
    (small, state), (large, _) = (peak((3, frames, 64, 64), 2**18) for frames in (32, 64))
    assert large - small < 11 * state


def test_the_estimate_of_a_row_is_at_least_what_it_takes():
    """Of a branch alone: the most bytes alive when it runs again, beside rows that are there already."""
    for name in TOKENS:
        block, x = blocks_of(name, drop_path=0.0, dtype=torch.float32)[0], states(name, torch.float32)
        for branch in block.branches:
            assert isinstance(branch, SliceableBranch)
            rows = branch.rows(x)
            function = branch.start(x[:, :0], rows)
            part = rows.take(x, 0, rows.count).detach().requires_grad_()
            for parameter in block.parameters():
                parameter.grad = torch.zeros_like(parameter)
            known = [part, *block.parameters(), *block.buffers(), *(p.grad for p in block.parameters())]
            with LiveBytes({tensor.untyped_storage().data_ptr() for tensor in known}) as live:
                function(part, 0).sum().backward()
            weights = 2 * sum(p.numel() for p in block.parameters()) * 4  # gradients on their way
            assert live.peak <= 4 * rows.count * rows.elements + weights, name


@pytest.mark.slow
def test_the_setting_reaches_every_stage_and_null_leaves_branches_whole():
    for mib, slice_bytes in ((64, 2**26), (1, 2**20), (None, None)):
        encoder = ClipEncoder(EncoderSettings(backbone="videomae_s", slice_mib=mib))
        assert {stage.slice_bytes for stage in rewired_stages(encoder)} == {slice_bytes}
