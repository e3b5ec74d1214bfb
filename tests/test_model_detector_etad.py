"""ETAD's detector as released: bins, draws and matches against slow references; what is ours on top of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_model_detector import LABELS, SEGMENTS, bumps, generator
from torch import Tensor

from model.detector import losses
from model.detector.build import build_detector
from model.detector.etad.bins import sampled_weights
from model.detector.etad.detector import Etad
from model.detector.etad.losses import boundary_loss, drawn, drawn_class_loss, drawn_tiou_loss
from model.detector.etad.targets import boundary_targets, matched_segments, refine
from model.detector.ground_truth import pad_actions
from model.detector.heads import StageOutput
from model.detector.settings import DetectorSettings
from model.segments import pairwise_tiou
from tools.weights.names.etad import from_authors

SIZES = {"neck_dim": 16, "fc_dim": 24, "head_dim": 16, "roi_bins": 8, "proposal_ratio": 0.2}
OURS = {
    "balancing": "weighted",
    "matching": "each_stage",
    "bins": "exact",
    "norms": True,
    "class_scores": True,
    "step_shortcut": True,
}


def small(num_steps: int = 16, **own: object) -> Etad:
    torch.manual_seed(0)
    settings = DetectorSettings(kind="etad", num_steps=num_steps, **SIZES, etad=own)
    detector = build_detector(settings, num_features=8, num_classes=3)
    assert isinstance(detector, Etad)
    return detector


def loss_of(detector: Etad, features: Tensor, videos: tuple[int, ...] = (0, 1)) -> tuple[Tensor, dict]:
    segments, labels = [SEGMENTS[i] for i in videos], [LABELS[i] for i in videos]
    return detector.loss(features, segments, labels, generator=generator())


def sampled_bins(features: Tensor, start: float, end: float, bins: int) -> list[float]:
    """torchvision's RoI align of one row of features, point by point."""
    num_steps = len(features)
    width = max(end - start, 1.0) / bins
    count = math.ceil(width)
    found = []
    for number in range(bins):
        total = 0.0
        for point in range(count):
            place = start + number * width + (point + 0.5) * width / count
            if not -1 <= place <= num_steps:
                continue
            place = min(max(place, 0.0), num_steps - 1.0)
            low = min(int(place), num_steps - 1)
            high = min(low + 1, num_steps - 1)
            total += float(features[low]) * (1 - place + low) + float(features[high]) * (place - low)
        found.append(total / count)
    return found


@pytest.mark.parametrize("bins", [4, 7, 24])
def test_sampled_bins_are_torchvisions_point_by_point(bins):
    draw = torch.Generator().manual_seed(bins)
    features = torch.randn(20, generator=draw, dtype=torch.float64)
    segments = torch.rand(200, 2, generator=draw, dtype=torch.float64) * 60 - 20
    segments[0] = torch.tensor([-1.0, 20.0])  # points on the very borders of what counts
    segments[1] = torch.tensor([5.0, 5.0])
    segments[2] = torch.tensor([-4000.0, 9000.0])
    got = (sampled_weights(segments, 20, bins) * features).sum(-1)
    want = [sampled_bins(features, *segment.tolist(), bins) for segment in segments]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=1e-9)  # float64, sums reordered


@pytest.mark.parametrize("bins", [4, 16])
def test_aligned_bins_are_half_a_step_earlier_and_empty_where_there_is_no_length(bins):
    draw = torch.Generator().manual_seed(bins)
    features = torch.randn(20, generator=draw, dtype=torch.float64)
    starts, lengths = torch.rand(2, 100, generator=draw, dtype=torch.float64) * 40 - 10
    lengths = lengths.clamp(min=1)  # shorter ones follow by hand
    segments = torch.stack([starts, starts + lengths], -1)
    got = (sampled_weights(segments, 20, bins, aligned=True) * features).sum(-1)
    want = [sampled_bins(features, *(segment - 0.5).tolist(), bins) for segment in segments]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=1e-9)  # float64, sums reordered
    short = torch.tensor([[3.0, 3.2], [3.0, 3.0], [5.0, 4.0]], dtype=torch.float64)
    weights = sampled_weights(short, 20, 2, aligned=True)
    # 3.0 to 3.2 in two bins: points at 3.05 and 3.15, 0.55 and 0.65 of the way from centre 2.5 to 3.5
    assert torch.allclose(weights[0, :, 2:4], torch.tensor([[0.45, 0.55], [0.35, 0.65]], dtype=torch.float64))
    assert (weights[1:] == 0).all()


def test_draws_take_about_as_many_and_all_of_them_where_there_are_too_few():
    group = torch.tensor([1.0, 1, 1, 1, 0, 0])
    draws = torch.tensor([0.1, 0.6, 0.9, 0.49, 0.99, 0.99])
    assert drawn(draws, group, torch.tensor(2.0)).tolist() == [0, 1, 1, 0, 0, 0]
    assert drawn(draws, group, torch.tensor(5.0)).tolist() == [1] * 6  # as released: of others, too
    assert drawn(draws, torch.zeros(6), torch.tensor(1.0)).tolist() == [1] * 6


@pytest.mark.slow
def test_balancing_by_weights_is_what_the_draws_are_on_average():
    draw = torch.Generator().manual_seed(0)
    logits, tiou = (torch.randn(2, 400, generator=draw, dtype=torch.float64) for _ in range(2))
    tiou = tiou.abs().clamp(max=2) / 2
    draws = torch.rand(2000, 2, 2, 400, generator=draw)
    hits = torch.stack(
        [drawn_class_loss(logits.sigmoid(), tiou, each[0], threshold=0.9) for each in draws]
    ).mean()
    values = torch.stack(
        [drawn_tiou_loss(logits.sigmoid(), tiou, (each[0], each[1])) for each in draws]
    ).mean()
    # 2,000 draws leave 0.3 %; a mean of ratios is not the ratio of means, with 30 positives by as much
    assert losses.tiou_class_loss(logits, tiou, threshold=0.9).item() == pytest.approx(hits.item(), rel=0.01)
    assert losses.tiou_regression_loss(logits, tiou).item() == pytest.approx(values.item(), rel=0.01)


def test_boundary_loss_sums_start_and_end_and_counts_one_kind_whole():
    scores = torch.tensor([[[0.9, 0.2, 0.1], [0.3, 0.3, 0.3]]])
    targets = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.0, 0.4]]])
    start = -(math.log(0.9) + (math.log(0.8) + math.log(0.9)) / 2) / 2
    want = start - math.log(0.7)
    assert boundary_loss(scores, targets).item() == pytest.approx(want, rel=1e-5)  # 1e-6 in the logarithms


def test_a_step_counts_as_start_where_half_of_it_is_within_the_radius():
    actions = pad_actions([torch.tensor([[3.0, 8.25]])], [torch.zeros(1).long()], num_videos=1, num_steps=10,
                          num_classes=1)  # fmt: skip
    targets = boundary_targets(actions, 10, radius=1.5)[0]
    assert (targets[0] > 0.5).nonzero().flatten().tolist() == [2, 3]  # 1 and 4 are half inside: not more
    assert (targets[1] > 0.5).nonzero().flatten().tolist() == [7, 8, 9]


def test_proposals_keep_the_action_that_they_overlap_most_the_first_if_none():
    actions = pad_actions(SEGMENTS, LABELS, num_videos=2, num_steps=16, num_classes=3)
    anchors = torch.tensor([[[2.0, 6.0], [6.0, 12.0], [14.0, 16.0]]]).expand(2, -1, -1)
    matched = matched_segments(anchors, actions)
    assert torch.equal(matched[0], SEGMENTS[0][[0, 1, 0]])
    assert matched[1].tolist() == [[0.0, 0.0]] * 3


def test_refining_is_the_mean_of_both_decodings_and_has_no_bounds():
    anchors = torch.tensor([[4.0, 8.0]])
    both = refine(anchors, torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, math.log(2)]]))
    # ends: 6, 4; centre 10 and width 8: 6, 14
    assert torch.allclose(both, torch.tensor([[6.0, 9.0]]))
    turned = refine(anchors, torch.tensor([[9.0, -9.0]]), torch.zeros(1, 2))
    assert turned.tolist() == [[22.0, -10.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "own", [{}, OURS, *({key: value} for key, value in OURS.items() if key != "step_shortcut")]
)
@pytest.mark.parametrize("videos", [(0, 1), (1, 1)])
def test_every_parameter_gets_a_finite_gradient_even_without_actions(own, videos):
    detector, features = small(**own), torch.randn(2, 8, 16, requires_grad=True)
    loss, parts = loss_of(detector, features, videos)
    loss.backward()
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-5)  # float32 sum
    missing = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == [] and features.grad.abs().sum() > 0
    assert ("proposal_class" in parts) == ("step_class" in parts) == own.get("class_scores", False)


@pytest.mark.parametrize("name", ["balancing", "matching", "bins", "norms"])
def test_each_setting_of_ours_changes_the_loss(name):
    features = torch.randn(2, 8, 16, generator=generator())
    plain, other = (loss_of(small(**own), features)[0] for own in ({}, {name: OURS[name]}))
    assert plain.item() != other.item()


@pytest.mark.parametrize("balancing", ["drawn", "weighted"])
def test_balancing_by_weights_leaves_nothing_to_be_drawn(balancing):
    detector, features = small(balancing=balancing), torch.randn(2, 8, 16, generator=generator())
    detector.settings = detector.settings.model_copy(update={"proposal_sampling": "grid"})
    one, other = (
        detector.loss(features, SEGMENTS, LABELS, generator=torch.Generator().manual_seed(seed))[1]
        for seed in (1, 2)
    )
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    drawn_parts = {"tiou_class", "tiou_regression", "proposal_boundary"}
    assert changed == (drawn_parts if balancing == "drawn" else set())


def test_class_scores_that_are_right_cost_nothing():
    detector, anchors = small(class_scores=True), SEGMENTS[0][None]
    actions = pad_actions(SEGMENTS[:1], LABELS[:1], num_videos=1, num_steps=16, num_classes=3)
    right = torch.full((1, 2, 3), -40.0)
    right[0, [0, 1], LABELS[0]] = 40.0
    none = torch.zeros(1, 2, 2)
    loss, wrong = (
        detector._class_loss(StageOutput(none, none, none, none, logits), anchors, actions)
        for logits in (right, -right)
    )
    assert loss < 1e-6 and wrong > 10


def test_the_loss_is_a_function_of_the_generator():
    detector, features = small(), torch.randn(2, 8, 16)
    assert torch.equal(loss_of(detector, features)[0], loss_of(detector, features)[0])
    other = detector.loss(features, SEGMENTS, LABELS, generator=torch.Generator().manual_seed(1))[0]
    assert not torch.equal(loss_of(detector, features)[0], other)


@pytest.mark.parametrize("own", [{}, OURS])
def test_prediction_scores_every_proposal_within_bounds(own):
    detector = small(**own)
    for stage in detector.stages:
        stage.start[-1].weight.data *= 30  # proposals that are turned round, or leave the window
    prediction = detector.predict(torch.randn(2, 8, 16, generator=generator()) * 20)
    assert prediction.segments.shape == (2, 136, 2) and prediction.class_scores.shape == (2, 136, 3)
    start, end = prediction.segments.unbind(-1)
    assert (start >= 0).all() and (start < end).all() and (end <= 16).all()
    assert (prediction.quality == 0).any() and (prediction.quality > 0).any()
    for scores in (prediction.quality, prediction.class_scores, prediction.boundary):
        assert scores.dtype == torch.float32 and not scores.requires_grad
        assert (scores >= 0).all() and (scores <= 1).all()
    assert (prediction.class_scores == 1).all() == (not own)


def test_other_numbers_of_steps_are_interpolated_and_wrong_features_refused():
    assert small().predict(torch.randn(1, 8, 11)).segments.shape == (1, 136, 2)
    with pytest.raises(ValueError, match="want \\(B, 8, T\\)"):
        small().predict(torch.randn(2, 7, 16))


@pytest.mark.parametrize("own", [{}, OURS])
def test_bfloat16_weights_take_float32_features_and_give_float32_results(own):
    detector, features = small(**own).bfloat16(), torch.randn(2, 8, 16)
    loss, _ = loss_of(detector, features)
    loss.backward()
    prediction = detector.predict(features)
    assert loss.dtype == prediction.segments.dtype == prediction.class_scores.dtype == torch.float32
    # 8 bits of mantissa through some fifteen layers
    assert loss.item() == pytest.approx(loss_of(small(**own), features)[0].item(), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roi_bins": 6}, "roi_bins: got 6, want a multiple of 4"),
        ({"etad": {"step_shortcut": True}}, "step_shortcut: got true without class_scores"),
        ({"etad": {"head_layers": 0}}, "head_layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        DetectorSettings(kind="etad", **changes)


def test_the_number_of_bins_may_be_even_for_proposals():
    assert DetectorSettings(roi_bins=6).kind == "proposals"


@pytest.mark.parametrize("name", ["etad_feature_anet_tsp", "etad_e2e_anet_r2plus1d"])
def test_every_tensor_of_a_released_detector_has_its_place(name, shared_real: Path):
    saved = json.loads((shared_real / "golden" / "keys" / f"{name}.json").read_text())["keys"]
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape, *_ in saved}
        own = Etad(DetectorSettings(kind="etad"), num_features=512, num_classes=200).state_dict()
    found = from_authors(weights)
    assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in own.items()}


@pytest.mark.ci
@pytest.mark.slow
def test_the_detector_alone_overfits_a_few_sequences():
    detector = small(32)
    features, segments, labels = bumps(32)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    draw = generator()
    for _ in range(100):
        optimizer.zero_grad()
        detector.loss(features, segments, labels, generator=draw)[0].backward()
        optimizer.step()
    prediction = detector.eval().predict(features)
    for video, of_video in enumerate(segments):
        best = prediction.segments[video, prediction.quality[video].argmax()]
        assert pairwise_tiou(best[None], of_video).max() >= 0.7
