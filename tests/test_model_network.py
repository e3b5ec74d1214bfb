"""Encoder and detector as one module: shapes, what is trained, what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.backbones import BACKBONES
from model.detector.settings import DetectorSettings
from model.network import ClipEncoder, Network
from model.settings import EncoderSettings

TINY = EncoderSettings(backbone="r2plus1d_tiny", clip_ratio=0.5, clips_per_forward=3)
SMALL = DetectorSettings(num_steps=8, neck_dim=16, fc_dim=16, head_dim=16, roi_bins=4)
GROUND_TRUTH = (
    [torch.tensor([[1.0, 4.0]]), torch.zeros(0, 2)],
    [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
)


def clips_of(videos: int = 2, clips: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (videos, clips, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)


def network_of(encoder: EncoderSettings = TINY) -> Network:
    torch.manual_seed(0)
    return Network(encoder, SMALL, num_classes=3)


def test_one_backward_reaches_every_parameter_of_encoder_and_detector():
    network = network_of()
    loss, parts = network(clips_of(), *GROUND_TRUTH, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isclose(sum(parts.values()), loss.detach())
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert any(p.grad.abs().sum() > 0 for p in network.encoder.parameters())


def test_a_frozen_encoder_is_left_out_of_the_gradient():
    network = network_of(TINY.model_copy(update={"frozen": True}))
    loss, _ = network(clips_of(), *GROUND_TRUTH, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.detector.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("backbone", ["r2plus1d_18", "tsm_r18", "video_swin_t", "videomae_s"])
def test_a_frozen_encoder_gives_the_features_of_evaluation_in_training(backbone, reversible):
    """Bit for bit, at each call, whatever batch norm, drop-path and dropout would do."""
    torch.manual_seed(0)
    settings = EncoderSettings(backbone=backbone, reversible=reversible, frozen=True, train_batch_norm=True)
    encoder = ClipEncoder(settings).eval()
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    features = encoder(clips)
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.train()
    assert torch.equal(encoder(clips), features) and torch.equal(encoder(clips), features)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize(
    ("beta", "end"),
    [
        ({"schedule": "linear"}, 0.0),
        ({"schedule": "cosine", "start": 0.4}, 0.4),
        ({"end": 0.9}, 0.9),
    ],
)
def test_the_features_of_a_frozen_encoder_are_those_at_the_beginning_of_a_schedule_of_beta(beta, end):
    features = []
    for settings in ({"frozen": True, "beta": beta}, {"beta": {"end": end}}):
        encoder = network_of(EncoderSettings(backbone="r2plus1d_tiny", **settings)).encoder.eval()
        features.append(encoder(clips_of()[0]))
    assert torch.equal(*features)


def test_without_ground_truth_it_predicts_all_proposals_of_every_video():
    network = network_of().eval()
    with torch.no_grad():
        prediction = network(clips_of())
    assert prediction.segments.shape == (2, 36, 2)  # 8 steps: 8 * 9 / 2 proposals
    assert prediction.class_scores.shape == (2, 36, 3)


def test_a_prediction_keeps_no_graph():
    network = network_of()
    prediction = network(clips_of())
    assert not prediction.segments.requires_grad
    assert not network.encode(clips_of(), kept=None).requires_grad


@pytest.mark.parametrize("missing", ["gt_segments", "gt_labels", "generator"])
def test_ground_truth_without_its_other_half_or_a_generator_is_refused_by_name(missing):
    arguments = {
        "gt_segments": GROUND_TRUTH[0],
        "gt_labels": GROUND_TRUTH[1],
        "generator": torch.Generator().manual_seed(0),
    }
    with pytest.raises(ValueError, match=f"^network: {missing}: got None with ground truth, want all of"):
        network_of()(clips_of(), **{**arguments, missing: None})


def test_a_clip_has_the_same_features_alone_and_in_a_batch():
    encoder = ClipEncoder(TINY).eval()
    clips = clips_of(1, 4)[0]
    with torch.no_grad():
        together, alone = encoder(clips), torch.cat([encoder(clip[None]) for clip in clips])
    # float32; the order of sums may differ between batch sizes
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("steps, expected", [(1, 1), (2, 2), (None, 2)])
def test_steps_per_clip_pools_time(steps, expected):
    encoder = ClipEncoder(TINY.model_copy(update={"steps_per_clip": steps}))
    clips = torch.zeros(1, 3, 8, 16, 16, dtype=torch.uint8)
    assert encoder(clips).shape == (1, 64, expected)


@pytest.mark.slow
@pytest.mark.parametrize("train_batch_norm", [False, True])
def test_batch_norm_keeps_its_statistics_unless_the_settings_train_it(train_batch_norm):
    settings = EncoderSettings(backbone="r2plus1d_18", train_batch_norm=train_batch_norm)
    encoder = ClipEncoder(settings).train()
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm3d))
    before = norm.running_mean.clone()
    with torch.no_grad():
        encoder(clips_of(1, 2)[0])
    assert norm.training == train_batch_norm
    assert torch.equal(norm.running_mean, before) != train_batch_norm


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    for wrong in ("r2plus1d_35", ""):
        with pytest.raises(ValueError, match="backbone") as error:
            EncoderSettings(backbone=wrong)
        assert all(name in str(error.value) for name in BACKBONES)
