"""ActionFormer's detector: attention, points and masks against slow references; that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_model_detector import LABELS, SEGMENTS, bumps, generator
from torch import Tensor

from model.detector.actionformer.attention import attend
from model.detector.actionformer.detector import ActionFormer
from model.detector.actionformer.losses import RunningNormaliser, distance_iou_losses
from model.detector.actionformer.points import assign_actions, make_points
from model.detector.actionformer.settings import ActionFormerSettings
from model.detector.build import build_detector
from model.detector.ground_truth import pad_actions
from model.detector.settings import DetectorSettings
from model.segments import pairwise_tiou
from tools.weights.names.actionformer import from_authors, from_opentad

SIZES = {"embed_dim": 16, "head_dim": 16, "max_distances": (4.0, 8.0), "attention_windows": (5,)}


def settings_of(num_steps: int = 16, **changes: object) -> DetectorSettings:
    return DetectorSettings(kind="actionformer", num_steps=num_steps, actionformer={**SIZES, **changes})


def small(num_steps: int = 16, **changes: object) -> ActionFormer:
    torch.manual_seed(0)
    return ActionFormer(settings_of(num_steps, **changes), num_features=8, num_classes=3)


def loss_of(detector: ActionFormer, features: Tensor, videos: tuple[int, ...] = (0, 1), **options: object):
    segments, labels = [SEGMENTS[i] for i in videos], [LABELS[i] for i in videos]
    return detector.loss(features, segments, labels, generator=generator(), **options)


# ------------------------------------------------------------------------------------------------ attention


def dense_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, window: int) -> Tensor:
    """Step by step: each query with every key that it sees."""
    out = torch.zeros_like(queries)
    num_steps = queries.shape[2]
    for video in range(len(queries)):
        for i in range(num_steps):
            reach = num_steps if window == 0 else window // 2
            seen = [j for j in range(num_steps) if abs(i - j) <= reach and mask[video, j]]
            if seen:
                scores = (queries[video, :, i, None] * keys[video, :, seen]).sum(-1) / keys.shape[-1] ** 0.5
                out[video, :, i] = (scores.softmax(-1)[..., None] * values[video, :, seen]).sum(1)
    return out


@pytest.mark.parametrize("window", [0, 1, 3, 7, 25, 41])
@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_attention_in_blocks_is_attention_to_the_window_step_by_step(window, num_steps):
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2, 2, num_steps, 3, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    mask = torch.arange(num_steps) < torch.tensor([[num_steps], [max(1, num_steps - 6)]])
    got = attend(queries, keys, values, mask, window=window)
    want = dense_attention(queries, keys, values, mask, window)
    there = mask[:, None, :, None]
    # float64, sums in another order
    assert torch.allclose(got * there, want * there, atol=1e-12) and got.isfinite().all()


# ------------------------------------------------------------------------------------------ points, targets


def test_points_lie_in_the_middle_of_the_first_step_of_their_cell():
    points = make_points(8, ActionFormerSettings(max_distances=(4.0, 8.0)), device=torch.device("cpu"))
    assert points.position.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 0.5, 2.5, 4.5, 6.5, 0.5, 4.5]
    assert points.stride.tolist() == [1.0] * 8 + [2.0] * 4 + [4.0] * 2
    assert points.min_distance.tolist() == [0.0] * 8 + [4.0] * 4 + [8.0] * 2
    distances = torch.ones(14, 2)
    assert points.segments(distances)[12].tolist() == [-3.5, 4.5]


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_point_is_trained_on_the_shortest_action_of_its_level_that_it_lies_in(radius, seed):
    draw = torch.Generator().manual_seed(seed)
    settings = ActionFormerSettings(max_distances=(2.0, 4.0), point_offset=0.5)
    points = make_points(16, settings, device=torch.device("cpu"))
    starts = torch.randint(0, 12, (2, 5), generator=draw).float()
    ends = (starts + torch.randint(1, 9, (2, 5), generator=draw)).clamp(max=16)
    labels = torch.randint(0, 3, (2, 5), generator=draw)
    segments = torch.stack([starts, ends], 2)
    actions = pad_actions(list(segments), list(labels), num_videos=2, num_steps=16, num_classes=3)
    classes, distances = assign_actions(points, actions, 3, centre_radius=radius)
    for video in range(2):
        for number, (x, stride, low, high) in enumerate(
            zip(points.position, points.stride, points.min_distance, points.max_distance, strict=True)
        ):
            found = []
            for (start, end), label in zip(segments[video].tolist(), labels[video].tolist(), strict=True):
                near = radius is None or abs(x - (start + end) / 2) < radius * stride
                if start < x < end and near and low <= max(x - start, end - x) <= high:
                    found.append((end - start, label, start, end))
            shortest = [row for row in found if row[0] == min(found)[0]]
            wanted = torch.zeros(3)
            wanted[[row[1] for row in shortest]] = 1
            assert torch.equal(classes[video, number], wanted)
            if shortest:
                options = [torch.stack([x - row[2], row[3] - x]) / stride for row in shortest]
                assert any(torch.equal(distances[video, number], option) for option in options)


def test_the_distance_loss_is_one_less_the_iou_and_a_share_of_the_centres():
    same = distance_iou_losses(torch.tensor([[2.0, 3.0]]), torch.tensor([[2.0, 3.0]]))
    assert same.tolist() == [0.0]
    # (-1, 1) against (-3, 1): IoU 1/2, centres 1 apart, outer 4
    other = distance_iou_losses(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]]))
    assert other.tolist() == [0.5 + 1 / 16]


def test_the_normaliser_moves_in_training_only():
    normaliser = RunningNormaliser(100.0, 0.9)
    assert normaliser(torch.tensor(50)).item() == pytest.approx(95)
    assert normaliser(torch.tensor(0)).item() == pytest.approx(0.9 * 95 + 0.1)
    normaliser.eval()
    assert normaliser(torch.tensor(0)).item() == 1 and normaliser(torch.tensor(7)).item() == 7
    assert normaliser.value.item() == pytest.approx(0.9 * 95 + 0.1)


# -------------------------------------------------------------------------------------------------- detector


def test_the_parts_sum_to_the_loss():
    loss, parts = loss_of(small(), torch.randn(2, 8, 16))
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-6)  # float32 sum
    assert not any(value.requires_grad for value in parts.values())


def test_the_loss_of_the_steps_is_the_weighted_mean_over_those_that_are_there():
    detector, features = small(step_class_weight=6), torch.randn(1, 8, 16)
    mask = torch.arange(16)[None] < 13
    _, parts = loss_of(detector, features, (0,), mask=mask)
    total, scores = 0.0, detector.step_class(features)[0].sigmoid()
    for step in range(13):
        for label in range(3):
            cover = 0.0
            for (start, end), its in zip(SEGMENTS[0].tolist(), LABELS[0].tolist(), strict=True):
                if its == label:
                    cover = max(cover, min(end, step + 1) - max(start, step))
            score = scores[label, step]
            total -= 5 * cover * score.log() + (1 - cover) * (1 - score).log()
    assert parts["step_class"].item() == pytest.approx(6 * total.item() / 13, rel=1e-5)  # float32 sums
    assert small().step_class is None  # ActionFormer's own has no such weights


@pytest.mark.parametrize("origin", ["authors", "opentad"])
@pytest.mark.parametrize("videos", [(0, 1), (1, 1)])
def test_every_parameter_gets_a_finite_gradient_even_without_actions(videos, origin):
    detector = small(origin=origin, step_class_weight=1)
    features = torch.randn(2, 8, 16, requires_grad=True)
    loss_of(detector, features, videos)[0].backward()
    missing = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == [] and features.grad.abs().sum() > 0


@pytest.mark.parametrize("origin", ["authors", "opentad"])
def test_what_is_behind_the_end_of_a_video_changes_nothing(origin):
    """20 of 32 steps, of 64 steps: the same outputs and losses."""
    features = torch.randn(1, 8, 20)
    found = []
    for num_steps in (32, 64):
        detector = small(num_steps, origin=origin).eval()
        torch.nn.init.ones_(detector.distances.last.bias)  # or segments have no length, and score 0
        padded = torch.nn.functional.pad(features, (0, num_steps - 20))
        mask = torch.arange(num_steps)[None] < 20
        loss, _ = loss_of(detector, padded, (0,), mask=mask)
        prediction = detector.predict(padded, mask)
        scored = prediction.class_scores.amax(2) > 0
        assert int(scored.sum()) == 20 + 10 + 5
        found.append((loss, prediction.segments[scored].clamp(max=20), prediction.class_scores[scored]))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)  # float32: sums over other lengths


def test_a_mask_of_everything_is_no_mask():
    detector, features = small().eval(), torch.randn(2, 8, 16)
    everything = torch.ones(2, 16, dtype=torch.bool)
    assert torch.equal(loss_of(detector, features)[0], loss_of(detector, features, mask=everything)[0])
    with pytest.raises(ValueError, match="mask \\(2, 8\\), want \\(2, 16\\)"):
        detector.predict(features, everything[:, :8])


def test_prediction_scores_every_point_within_bounds():
    detector = small()
    prediction = detector.predict(torch.randn(2, 8, 16) * 20)
    assert prediction.segments.shape == (2, 28, 2) and prediction.class_scores.shape == (2, 28, 3)
    assert prediction.quality.shape == (2, 28) and prediction.boundary.shape == (2, 2, 16)
    start, end = prediction.segments.unbind(-1)
    assert (start >= 0).all() and (start < end).all() and (end <= 16).all()
    for scores in (prediction.quality, prediction.class_scores, prediction.boundary):
        assert scores.dtype == torch.float32 and not scores.requires_grad
        assert (scores >= 0).all() and (scores <= 1).all()


def test_bfloat16_weights_take_float32_features_and_give_float32_results():
    features = torch.randn(2, 8, 16)
    whole, half = small(drop_path=0), small(drop_path=0)
    for parameter in half.parameters():  # buffers stay, as under DeepSpeed
        parameter.data = parameter.data.bfloat16()
    loss, _ = loss_of(half, features)
    loss.backward()
    prediction = half.predict(features)
    assert loss.dtype == prediction.segments.dtype == prediction.class_scores.dtype == torch.float32
    # 8 bits of mantissa through some ten layers
    assert loss.item() == pytest.approx(loss_of(whole, features)[0].item(), rel=0.05)


def test_dropout_takes_whole_channels_of_each_sample_in_training_alone():
    detector, seen = small(input_dropout=0.5, drop_path=0), []
    detector.pyramid.embed[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = torch.randn(2, 8, 16)
    loss, _ = loss_of(detector, features)
    factors = seen[0] / features  # (2, 8, 16)
    assert torch.equal(factors, factors[..., :1].expand_as(factors)) and set(factors.unique().tolist()) == {
        0,
        2,
    }
    assert not torch.equal(factors[0], factors[1])
    assert loss.item() != loss_of(small(drop_path=0), features)[0].item()
    prediction = detector.eval().predict(features)
    assert torch.equal(seen[1], features)
    assert torch.equal(prediction.segments, small(drop_path=0).eval().predict(features).segments)


def test_other_numbers_of_steps_are_interpolated_and_wrong_features_refused():
    assert small().predict(torch.randn(1, 8, 11)).segments.shape == (1, 28, 2)
    with pytest.raises(ValueError, match="want \\(B, 8, T\\)"):
        small().predict(torch.randn(2, 7, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 18}, "num_steps: got 18, want a multiple of 32"),
        ({"actionformer": {"attention_windows": (4,)}}, "attention_windows: .* want odd"),
        ({"actionformer": {"attention_windows": (5, 5)}}, "attention_windows: got 2 values, want 1 or 6"),
        ({"actionformer": {"max_distances": (8.0, 4.0)}}, "max_distances: .* rising"),
        ({"actionformer": {"embed_dim": 18}}, "embed_dim: got 18, want a multiple of num_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        DetectorSettings(**{"kind": "actionformer", "num_steps": 16, **changes})


def test_the_number_of_steps_is_free_for_proposals():
    assert DetectorSettings(num_steps=18).kind == "proposals"


@pytest.mark.ci
def test_the_detector_alone_overfits_a_few_sequences():
    changes = {"embed_dim": 32, "head_dim": 32, "max_distances": (4.0, 8.0, 16.0), "drop_path": 0.0}
    torch.manual_seed(0)
    detector = build_detector(settings_of(32, **changes, normaliser_start=20), num_features=8, num_classes=3)
    features, segments, labels = bumps(32)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        detector.loss(features, segments, labels, generator=generator())[0].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    prediction = detector.eval().predict(features)
    best = prediction.class_scores.argmax(1)  # (B, K): the best point of each class in each video
    for video, (some_segments, some_labels) in enumerate(zip(segments, labels, strict=True)):
        for segment, label in zip(some_segments, some_labels.tolist(), strict=True):
            found = prediction.segments[video, best[video, label]]
            assert pairwise_tiou(found[None], segment[None]).item() >= 0.7


# -------------------------------------------------------------------------------- names of whole checkpoints

FULL = {
    "actionformer_release_thumos_i3d": (2048, 20, 2304, {}),
    "actionformer_release_anet_tsp": (512, 1, 192, {"embed_dim": 256, "head_dim": 256}),
    "opentad_actionformer_thumos_i3d": (2048, 20, 2304, {}),
    "opentad_actionformer_anet_tsp": (512, 1, 192, {"embed_dim": 256, "head_dim": 256}),
    "opentad_re2tal_thumos_swin_tiny": (768, 20, 512, {}),
    "opentad_re2tal_anet_swin_tiny": (768, 1, 192, {"embed_dim": 256, "head_dim": 256}),
    "opentad_re2tal_thumos_slowfast101": (2304, 20, 512, {}),
    "opentad_re2tal_anet_slowfast101": (2304, 1, 192, {"embed_dim": 256, "head_dim": 256}),
}


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_of_a_released_detector_has_its_place(name, shared_real: Path):
    saved = json.loads((shared_real / "golden" / "keys" / f"{name}.json").read_text())["keys"]
    with torch.device("meta"):
        weights = {f"module.{key}": torch.empty(shape) for key, shape, *_ in saved}
    inputs, classes, num_steps, changes = FULL[name]
    found = (from_opentad if name.startswith("opentad") else from_authors)(weights)
    whole = {"kind": "actionformer", "num_steps": num_steps, "actionformer": changes}
    with torch.device("meta"):
        own = ActionFormer(DetectorSettings(**whole), num_features=inputs, num_classes=classes).state_dict()
    found.setdefault("normaliser.value", own["normaliser.value"])  # the authors' is not saved
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        key: tuple(value.shape) for key, value in own.items()
    }
