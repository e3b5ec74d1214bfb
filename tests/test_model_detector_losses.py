"""The losses: targets drawn by hand, balance, and no dead or nan gradient when nothing is positive."""

from __future__ import annotations

import math

import pytest
import torch

from model.detector import losses
from model.detector.proposals import (
    candidate_proposals,
    decode_boundaries,
    decode_centre_width,
    encode_boundaries,
    encode_centre_width,
    refine,
)
from model.detector.sampling import balanced_proposals, random_proposals
from model.segments import pairwise_tiou

GT = torch.tensor([[[1.0, 3.5], [4.0, 6.0]]])
MASK = torch.tensor([[True, True]])


def test_boundary_targets_are_the_cover_around_each_end():
    targets = losses.boundary_targets(GT, MASK, 8, radius=1.0)[0]
    assert targets[0].tolist() == [1, 1, 0, 1, 1, 0, 0, 0]  # starts 1 and 4
    assert targets[1].tolist() == [0, 0, 0.5, 1, 0.5, 1, 1, 0]  # ends 3.5 and 6


def test_masked_actions_leave_no_targets():
    none = torch.tensor([[False, False]])
    assert losses.boundary_targets(GT, none, 8, radius=1.0).sum() == 0
    assert losses.step_class_targets(GT, torch.tensor([[0, 1]]), none, 8, 2).sum() == 0


def test_step_class_targets_hold_two_classes_at_once():
    gt = torch.tensor([[[1.0, 3.5], [2.0, 5.0]]])
    targets = losses.step_class_targets(gt, torch.tensor([[2, 0]]), MASK, 6, 3)[0]
    assert targets[2].tolist() == [0, 1, 1, 0.5, 0, 0]
    assert targets[0].tolist() == [0, 0, 1, 1, 1, 0]
    assert targets[1].sum() == 0


def test_proposal_class_targets_are_tiou_per_class_above_the_threshold():
    tiou = torch.tensor([[[0.9, 0.6, 0.2], [0.5, 0.4, 0.55]]])
    mask = torch.tensor([[True, True, True]])
    targets = losses.proposal_class_targets(tiou, torch.tensor([[1, 0, 1]]), mask, 3, threshold=0.5)
    assert torch.allclose(targets, torch.tensor([[[0.6, 0.9, 0.0], [0.0, 0.55, 0.0]]]))


def test_balanced_bce_weighs_one_positive_like_all_negatives():
    targets = torch.tensor([1.0] + [0.0] * 99)
    logits = torch.zeros(100, requires_grad=True)
    loss = losses.balanced_bce(logits, targets)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    assert logits.grad[0].item() == pytest.approx(-logits.grad[1:].sum().item(), abs=1e-6)


def test_weighted_bce_by_hand():
    logits = torch.zeros(1, 2, 3)  # every probability is a half: log 2 each, positives times 5
    targets = torch.zeros(1, 2, 3)
    targets[0, 1, 2] = 1.0
    value = losses.weighted_bce(logits, targets, positive_weight=5.0)
    assert torch.isclose(value, torch.tensor(math.log(2) * (5 + 5) / 3))


def test_focal_loss_of_one_logit_by_hand():
    value = losses.focal_loss(torch.tensor([0.0]), torch.tensor([1.0]), alpha=0.25, gamma=2.0)
    assert value.item() == pytest.approx(0.25 * 0.25 * math.log(2), abs=1e-6)


def test_focal_loss_is_lowest_at_its_soft_target():
    logits = torch.linspace(-3, 3, 61)
    values = [losses.focal_loss(x[None], torch.tensor([0.7])).item() for x in logits]
    assert logits[values.index(min(values))].sigmoid().item() == pytest.approx(0.7, abs=0.03)  # grid of 0.1


def test_tiou_class_loss_weighs_positives_and_negatives_alike():
    tiou = torch.tensor([[0.95] + [0.1] * 50])
    logits = torch.zeros(1, 51, requires_grad=True)
    losses.tiou_class_loss(logits, tiou, threshold=0.9).backward()
    assert logits.grad[0, 0].item() == pytest.approx(-logits.grad[0, 1:].sum().item(), abs=1e-6)


def test_tiou_regression_weighs_high_middle_and_low_alike():
    tiou = torch.tensor([[0.8] + [0.5] * 10 + [0.0] * 100])
    logits = torch.zeros(1, 111)
    want = (0.3**2 + 0.0 + 0.5**2) / 3
    assert losses.tiou_regression_loss(logits, tiou).item() == pytest.approx(want, abs=1e-6)


def test_offset_loss_counts_only_positive_proposals():
    offsets, targets = torch.zeros(1, 2, 2), torch.tensor([[[0.5, 0.0], [9.0, 9.0]]])
    value = losses.offset_loss(offsets, targets, torch.tensor([[1.0, 0.0]]), beta=0.1)
    assert value.item() == pytest.approx(0.45, abs=1e-6)  # |0.5| - beta / 2


def test_end_targets_follow_the_anchor_length():
    anchors, matched = torch.tensor([[[0.0, 10.0], [0.0, 2.0]]]), torch.tensor([[[0.9, 12.0], [0.9, 2.0]]])
    assert losses.boundary_match_targets(anchors, matched, tolerance=0.1).tolist() == [[[1, 0], [0, 1]]]


def test_losses_without_positives_are_finite_and_stay_in_the_graph():
    logits = torch.randn(2, 6, requires_grad=True)
    offsets = torch.randn(2, 6, 2, requires_grad=True)
    zero = torch.zeros(2, 6)
    total = (
        losses.balanced_bce(logits, zero)
        + losses.focal_loss(logits, zero)
        + losses.tiou_class_loss(logits, zero, threshold=0.9)
        + losses.tiou_regression_loss(logits, zero)
        + losses.offset_loss(offsets, torch.zeros(2, 6, 2), zero, beta=0.1)
    )
    total.backward()
    assert logits.grad.isfinite().all() and torch.equal(offsets.grad, torch.zeros_like(offsets))


def test_the_map_holds_every_segment_with_whole_ends_once():
    want = [[s, e] for s in range(5) for e in range(s + 1, 6)]
    assert candidate_proposals(5).tolist() == want
    assert len(candidate_proposals(128)) == 8256  # ETAD's map


@pytest.mark.parametrize(
    "encode, decode", [(encode_boundaries, decode_boundaries), (encode_centre_width, decode_centre_width)]
)
def test_offsets_go_there_and_back(encode, decode):
    anchors, targets = torch.tensor([[2.0, 6.0], [1.0, 9.0]]), torch.tensor([[3.0, 5.5], [0.0, 12.0]])
    assert torch.allclose(decode(anchors, encode(anchors, targets)), targets, atol=1e-5)


def test_refined_anchors_stay_inside_whatever_the_offsets():
    offsets = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 20
    segments = refine(torch.tensor([[3.0, 7.0]]).expand(200, 2), offsets, offsets.flip(0), num_steps=16)
    assert (segments >= 0).all() and (segments <= 16).all() and (segments[:, 0] < segments[:, 1]).all()


def test_random_sampling_draws_the_same_number_for_every_video_without_repeats():
    generator = torch.Generator().manual_seed(0)
    sampled = random_proposals(candidate_proposals(16), 3, 20, generator=generator)
    assert sampled.shape == (3, 20, 2)
    assert all(len(set(map(tuple, video.tolist()))) == 20 for video in sampled)
    assert not torch.equal(sampled[0], sampled[1])


def test_balanced_sampling_sees_short_and_long_actions_alike():
    candidates = candidate_proposals(32)
    gt = torch.tensor([[[4.0, 6.0], [8.0, 28.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True], [False, False]])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(2)
    for _ in range(50):
        sampled = balanced_proposals(candidates, gt, mask, 32, share=0.5, min_tiou=0.6, generator=generator)
        assert sampled.shape == (2, 32, 2) and len(set(map(tuple, sampled[0].tolist()))) == 32
        counts += (pairwise_tiou(sampled[0], gt[0]) >= 0.6).sum(0)
    plain = (pairwise_tiou(candidates, gt[0]) >= 0.6).float().mean(0) * 32 * 50
    assert counts[0] > 8 * plain[0]  # the short action: a uniform draw seldom meets it
    assert counts[1] > 1.5 * plain[1]
