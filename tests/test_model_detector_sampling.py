"""model/detector/sampling.py: each way to draw proposals, by counts, by hand, and what it costs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.detector.ground_truth import pad_actions
from model.detector.proposal_detector import ProposalDetector
from model.detector.proposals import candidate_proposals
from model.detector.sampling import (
    balanced_proposals,
    block_proposals,
    dpp_proposals,
    draw_proposals,
    farthest_proposals,
    grid_proposals,
    random_proposals,
    scale_balanced_proposals,
)
from model.detector.settings import DetectorSettings
from model.segments import pairwise_tiou
from tools.benchmarks.trackers import SavedBytes

STRATEGIES = get_args(DetectorSettings.model_fields["proposal_sampling"].annotation)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(strategy: str, num_steps: int, count: int, *, seed: int = 0, videos: int = 2) -> Tensor:
    actions = pad_actions(
        [torch.tensor([[1.0, 3.5]]), *[torch.zeros(0, 2)] * (videos - 1)],
        [torch.tensor([0]), *[torch.zeros(0, dtype=torch.int64)] * (videos - 1)],
        num_videos=videos,
        num_steps=num_steps,
        num_classes=1,
    )
    settings = DetectorSettings(num_steps=num_steps, proposal_sampling=strategy)
    return draw_proposals(settings, count / (num_steps * (num_steps + 1) / 2), actions, seeded(seed))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    num_steps=st.integers(4, 20),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_every_video_gets_the_count_of_proposals_each_once(strategy, num_steps, data, seed):
    count = data.draw(st.integers(1, num_steps * (num_steps + 1) // 2))
    drawn = draw(strategy, num_steps, count, seed=seed)
    assert drawn.shape == (2, count, 2) and drawn.dtype == torch.float32
    assert (drawn[..., 0] < drawn[..., 1]).all() and drawn.min() >= 0 and drawn.max() <= num_steps
    assert torch.equal(drawn, drawn.round())
    numbers = drawn[..., 0] * (num_steps + 1) + drawn[..., 1]
    assert (numbers.diff(dim=1) > 0).all(), "by start, then end, without repeats"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ratio_one_is_the_whole_map(strategy):
    assert torch.equal(draw(strategy, 9, 45), candidate_proposals(9).expand(2, -1, -1))


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {"grid"}))
def test_the_draw_follows_the_seed_and_differs_between_videos(strategy):
    one, again, other = (draw(strategy, 16, 20, seed=seed, videos=3) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one[1], one[2])  # neither has an action


def test_what_was_drawn_before_is_drawn_still():
    """The seeds of older runs: random and balanced are called as they were."""
    candidates = candidate_proposals(16)
    assert torch.equal(draw("random", 16, 20), random_proposals(candidates, 2, 20, generator=seeded()))
    segments, mask = torch.tensor([[[1.0, 3.5]], [[0.0, 0.0]]]), torch.tensor([[True], [False]])
    balanced = balanced_proposals(candidates, segments, mask, 20, share=0.5, min_tiou=0.5, generator=seeded())
    assert torch.equal(draw("balanced", 16, 20), balanced)


def test_the_lattice_is_etads():
    """128 steps at 6 %: steps of 128 / 31 in start and length, 496 proposals, one more than asked for."""
    lattice = grid_proposals(128, 496)
    starts, lengths = lattice[:, 0], lattice[:, 1] - lattice[:, 0]
    assert len(starts.unique()) == len(lengths.unique()) == 31
    assert set(starts.unique().diff().tolist()) == set(lengths.unique().diff().tolist()) == {4.0, 5.0}
    assert lengths.min() == 1
    assert {tuple(row) for row in grid_proposals(128, 495).tolist()} < {
        tuple(row) for row in lattice.tolist()
    }


def test_a_block_is_a_square_of_starts_and_lengths():
    drawn = block_proposals(candidate_proposals(40), 200, 25, generator=seeded())
    start, length = drawn[..., 0], drawn[..., 1] - drawn[..., 0]
    square = ((start.amax(1) - start.amin(1)) == 4) & ((length.amax(1) - length.amin(1)) == 4)
    assert square.float().mean() > 0.5, "the others are cut by the border of the map"
    assert len(start[:, 12].unique()) > 20, "it lies anywhere"


def spread(drawn: Tensor) -> float:
    """Mean distance on the map to the nearest other proposal."""
    distance = torch.cdist(drawn, drawn)
    return (distance + 1e6 * torch.eye(drawn.shape[1])).amin(2).mean().item()


def test_farthest_proposals_are_spread_over_the_map():
    candidates = candidate_proposals(32)
    far = farthest_proposals(candidates, 20, 30, generator=seeded())
    assert spread(far) > 1.5 * spread(random_proposals(candidates, 20, 30, generator=seeded()))


def overlap(drawn: Tensor) -> float:
    """Mean of each proposal's largest tIoU with another."""
    tiou = pairwise_tiou(drawn, drawn)
    return (tiou - torch.eye(drawn.shape[1])).amax(2).mean().item()


def test_proposals_of_a_dpp_overlap_less():
    candidates = candidate_proposals(32)
    apart = dpp_proposals(candidates, 50, 60, generator=seeded())
    assert overlap(apart) < overlap(random_proposals(candidates, 50, 60, generator=seeded())) - 0.03


def octaves(drawn: Tensor) -> Tensor:
    """Proposals of one video by octave of lengths."""
    return torch.bincount((drawn[:, 1] - drawn[:, 0]).log2().floor().long(), minlength=6)


def test_each_octave_of_lengths_has_an_equal_share_or_all_it_has():
    # 32 steps: 32, 61, 110, 172, 152 (16 to 31 steps) and 1 (32) candidates
    (drawn,) = scale_balanced_proposals(candidate_proposals(32), 1, 101, generator=seeded())
    assert octaves(drawn).tolist() == [20, 20, 20, 20, 20, 1]
    (drawn,) = scale_balanced_proposals(candidate_proposals(32), 1, 200, generator=seeded())
    assert octaves(drawn)[0] == 32 and octaves(drawn)[5] == 1
    assert {*octaves(drawn)[1:5].tolist()} == {41, 42}
    few = scale_balanced_proposals(candidate_proposals(32), 500, 2, generator=seeded())
    counts = torch.stack([octaves(video) for video in few])
    assert (counts.max(1).values == 1).all(), "two of the six octaves, by lot"
    assert (counts.sum(0) > 100).all()


def detector_of(num_steps: int, ratio: float) -> ProposalDetector:
    torch.manual_seed(0)
    sizes = {"neck_dim": 16, "fc_dim": 24, "head_dim": 16, "roi_bins": 8}
    return ProposalDetector(
        DetectorSettings(num_steps=num_steps, proposal_ratio=ratio, **sizes), num_features=8, num_classes=3
    )


def cost(num_steps: int, count: int) -> tuple[int, int]:
    """Bytes kept for the backward, and floating-point operations, of a step with `count` proposals."""
    detector = detector_of(num_steps, count / (num_steps * (num_steps + 1) / 2))
    assert detector.settings.num_samples == count
    saved = SavedBytes({p.untyped_storage().data_ptr() for p in detector.parameters()})
    features = torch.randn(1, 8, num_steps)
    with saved, FlopCounterMode(display=False) as flops:
        loss, _ = detector.loss(
            features, [torch.tensor([[1.0, 3.0]])], [torch.tensor([1])], generator=seeded()
        )
        kept = saved.now
    loss.backward()
    return kept, flops.get_total_flops()


@pytest.mark.slow
def test_memory_and_time_of_a_step_follow_the_sampled_proposals_and_not_the_map():
    (one, one_flops), (two, two_flops), (four, four_flops) = (cost(32, n) for n in (64, 128, 256))
    assert (four - two) == pytest.approx(2 * (two - one), rel=0.02), "bytes are a line in the count"
    assert (four_flops - two_flops) == pytest.approx(2 * (two_flops - one_flops), rel=0.02)
    # Four times the map, at equal count: what grows are the T steps of neck and RoI align, twice as many.
    larger, larger_flops = cost(64, 128)
    assert larger < 2.1 * two and larger_flops < 2.1 * two_flops


def test_a_detector_draws_as_many_as_its_ratio_of_the_moment_says():
    detector, counts = detector_of(16, 0.5), []
    detector.stages[0].register_forward_pre_hook(lambda module, inputs: counts.append(inputs[2].shape[1]))
    for ratio in (0.5, 0.25, 1e-9, 1.0):
        detector.proposal_ratio = ratio
        detector.loss(torch.randn(1, 8, 16), [torch.zeros(0, 2)], [torch.zeros(0).long()], generator=seeded())
    assert counts == [68, 34, 1, 136]
