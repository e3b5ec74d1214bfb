"""The detector: shapes, dtypes, gradients, wrong input, and that it overfits a few videos."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from model.detector import ProposalDetector
from model.detector.ground_truth import PaddedActions, pad_actions
from model.detector.settings import DetectorSettings
from model.segments import pairwise_tiou

SMALL = DetectorSettings(num_steps=16, neck_dim=16, fc_dim=24, head_dim=16, roi_bins=8, proposal_ratio=0.2)
SEGMENTS = [torch.tensor([[2.0, 7.0], [5.0, 12.5]]), torch.zeros(0, 2)]
LABELS = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]


def small(settings: DetectorSettings = SMALL) -> ProposalDetector:
    torch.manual_seed(0)
    return ProposalDetector(settings, num_features=8, num_classes=3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_parts_sum_to_the_loss():
    loss, parts = small().loss(torch.randn(2, 8, 16), SEGMENTS, LABELS, generator=generator())
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-5)  # float32 sum
    assert not any(value.requires_grad for value in parts.values())


@pytest.mark.parametrize("sampling", ["random", "balanced"])
@pytest.mark.parametrize("videos", [[0, 1], [1, 1]])
def test_every_parameter_gets_a_finite_gradient_even_without_actions(videos, sampling):
    detector = small(SMALL.model_copy(update={"proposal_sampling": sampling}))
    features = torch.randn(2, 8, 16, requires_grad=True)
    loss, _ = detector.loss(
        features, [SEGMENTS[i] for i in videos], [LABELS[i] for i in videos], generator=generator()
    )
    loss.backward()
    missing = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == [] and features.grad.abs().sum() > 0


def test_the_loss_is_a_function_of_the_generator():
    detector, features = small(), torch.randn(2, 8, 16)
    first = detector.loss(features, SEGMENTS, LABELS, generator=generator())[0]
    assert torch.equal(first, detector.loss(features, SEGMENTS, LABELS, generator=generator())[0])
    other = detector.loss(features, SEGMENTS, LABELS, generator=torch.Generator().manual_seed(1))[0]
    assert not torch.equal(first, other)


def test_padding_a_video_with_fewer_actions_changes_nothing():
    detector, features = small(SMALL.model_copy(update={"proposal_ratio": 1.0})), torch.randn(1, 8, 16)
    short = pad_actions(SEGMENTS[:1], LABELS[:1], num_videos=1, num_steps=16, num_classes=3)
    padded = pad_actions(
        SEGMENTS[:1] + [torch.tensor([[1.0, 2.0]] * 5)],
        LABELS[:1] + [torch.zeros(5).long()],
        num_videos=2,
        num_steps=16,
        num_classes=3,
    )
    x, step_logits = detector._encode_steps(features)
    anchors = torch.tensor([[[1.0, 6.0], [4.0, 13.0], [0.0, 3.0]]])
    output = detector.stages[0](x, step_logits.sigmoid(), anchors)
    padded = PaddedActions(padded.segments[:1], padded.labels[:1], padded.mask[:1])
    assert detector._stage_losses(output, anchors, short, 0.5) == detector._stage_losses(
        output, anchors, padded, 0.5
    )


def test_prediction_scores_every_proposal_within_bounds():
    prediction = small().predict(torch.randn(2, 8, 16))
    assert prediction.segments.shape == (2, 136, 2) and prediction.class_scores.shape == (2, 136, 3)
    assert prediction.quality.shape == (2, 136) and prediction.boundary.shape == (2, 2, 16)
    start, end = prediction.segments.unbind(-1)
    assert (start >= 0).all() and (start < end).all() and (end <= 16).all()
    for scores in (prediction.quality, prediction.class_scores, prediction.boundary):
        assert scores.dtype == torch.float32 and not scores.requires_grad
        assert (scores >= 0).all() and (scores <= 1).all()


def test_predictions_do_not_depend_on_how_many_proposals_are_scored_at_once():
    features = torch.randn(2, 8, 16)
    whole = small().predict(features)
    chunked = small(SMALL.model_copy(update={"predict_proposals": 10})).predict(features)
    assert torch.allclose(whole.segments, chunked.segments, atol=1e-5)  # other shapes of the same products
    assert torch.allclose(whole.class_scores, chunked.class_scores, atol=1e-5)


@pytest.mark.slow
def test_with_a_norm_the_shortcut_sees_no_scale_and_mean_of_the_features():
    detector, features = small(SMALL.model_copy(update={"shortcut_norm": True})), torch.randn(2, 8, 16)
    by_hand = (features - features.mean(1, keepdim=True)) / features.var(1, False, keepdim=True).add(
        1e-5
    ).sqrt()
    shortcuts = []
    for scale, offset in ((1, 0), (20, 3)):
        x, logits = detector._encode_steps(scale * features + offset)
        shortcuts.append(logits - detector.step_class(x))
    assert torch.allclose(shortcuts[0], detector.step_shortcut(by_hand), atol=1e-5)
    assert torch.allclose(
        shortcuts[0], shortcuts[1], atol=1e-4
    )  # the norm's eps of 1e-5 beside a variance of 1
    x, logits = small()._encode_steps(features)
    assert torch.allclose(logits - small().step_class(x), small().step_shortcut(features), atol=1e-5)


def test_other_numbers_of_steps_are_interpolated():
    assert small().predict(torch.randn(1, 8, 11)).segments.shape == (1, 136, 2)
    assert small().loss(torch.randn(2, 8, 40), SEGMENTS, LABELS, generator=generator())[0].isfinite()


def test_bfloat16_weights_take_float32_features_and_give_float32_results():
    detector, features = small().bfloat16(), torch.randn(2, 8, 16)
    loss, _ = detector.loss(features, SEGMENTS, LABELS, generator=generator())
    loss.backward()
    prediction = detector.predict(features)
    assert loss.dtype == prediction.segments.dtype == prediction.class_scores.dtype == torch.float32
    assert loss.item() == pytest.approx(
        small().loss(features, SEGMENTS, LABELS, generator=generator())[0].item(), rel=0.05
    )  # 8 bits of mantissa through some ten layers


@pytest.mark.parametrize(
    "segments, labels, message",
    [
        ([[3.0, 3.0]], [0], "start < end"),
        ([[5.0, 2.0]], [0], "start < end"),
        ([[float("nan"), 2.0]], [0], "start < end"),
        ([[17.0, 20.0]], [0], "start < end"),
        ([[1.0, 2.0]], [3], "want 0 to 2"),
        ([[1.0, 2.0]], [-1], "want 0 to 2"),
        ([[1.0, 2.0]], [0, 1], "for 2 labels"),
        ([[1.0, 2.0]], [0.5], "want integers"),
    ],
)
def test_wrong_ground_truth_is_refused_by_the_video_and_the_value(segments, labels, message):
    with pytest.raises(ValueError, match=f"video 0: .*{message}"):
        small().loss(
            torch.randn(1, 8, 16), [torch.tensor(segments)], [torch.tensor(labels)], generator=generator()
        )


def test_wrong_features_and_counts_are_refused():
    with pytest.raises(ValueError, match="want \\(B, 8, T\\)"):
        small().predict(torch.randn(2, 7, 16))
    with pytest.raises(ValueError, match="for 3 videos"):
        small().loss(torch.randn(3, 8, 16), SEGMENTS, LABELS, generator=generator())


@pytest.mark.parametrize(
    "wrong",
    [{"neck_dim": 30}, {"roi_bins": 7}, {"regression_tiou": ()}, {"proposal_ratio": 0}, {"stages": 3}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        DetectorSettings(**wrong)


def test_an_action_that_leaves_the_window_is_clipped():
    segments = [torch.tensor([[-3.0, 5.0]]), torch.tensor([[0.0, 5.0]])]
    values = [
        small().loss(torch.ones(1, 8, 16), [s], [torch.tensor([1])], generator=generator())[0]
        for s in segments
    ]
    assert torch.equal(*values)


def bumps(num_steps: int) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Four videos whose features are a class's own pattern between start and end; two classes overlap."""
    videos = [
        [(3.0, 9.0, 0), (14.0, 26.0, 1)],
        [(5.0, 20.0, 2), (12.0, 28.0, 0)],
        [(20.0, 25.0, 1)],
        [(1.0, 13.0, 1), (16.0, 30.0, 2)],
    ]
    noise = torch.Generator().manual_seed(0)
    features = torch.randn(len(videos), 8, num_steps, generator=noise) * 0.1
    pattern = torch.randn(3, 8, generator=noise)
    for video, actions in enumerate(videos):
        for start, end, label in actions:
            features[video, :, int(start) : int(end)] += pattern[label][:, None]
    segments = [torch.tensor([action[:2] for action in actions]) for actions in videos]
    labels = [torch.tensor([action[2] for action in actions]) for actions in videos]
    return features, segments, labels


@pytest.mark.ci
@pytest.mark.slow
def test_the_detector_alone_overfits_a_few_sequences():
    settings = DetectorSettings(
        num_steps=32, neck_dim=32, fc_dim=64, head_dim=32, roi_bins=8, proposal_ratio=0.2
    )
    torch.manual_seed(0)
    detector = ProposalDetector(settings, num_features=8, num_classes=3)
    features, segments, labels = bumps(32)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    draws = generator()
    for _ in range(150):
        optimizer.zero_grad()
        detector.loss(features, segments, labels, generator=draws)[0].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    prediction = detector.predict(features)
    scores = prediction.quality[:, :, None] * prediction.class_scores
    best = scores.argmax(1)  # (B, K): the best proposal of each class in each video
    for video, (some_segments, some_labels) in enumerate(zip(segments, labels, strict=True)):
        for segment, label in zip(some_segments, some_labels.tolist(), strict=True):
            assert (
                pairwise_tiou(prediction.segments[video, best[video, label]][None], segment[None]).item()
                >= 0.7
            )
