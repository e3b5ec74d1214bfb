"""Shipped recipes: each takes a step at reduced size, and states what its source does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from model.backbones import build_backbone
from pipeline.annotations import read_annotations
from pipeline.windows import windows_of
from train.build_network import build_network
from train.parameter_groups import parameter_groups
from train.settings import RECIPES, Settings, load_settings

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
OPENTAD_RE2TAL = [name for name in NAMES if "re2tal" in name]


def recipe(name: str, *changes: str) -> Settings:
    return load_settings(RECIPES / f"{name}.yaml", changes)


def reduced(name: str) -> Settings:
    """The recipe with a small encoder, few clips, few channels, and all else as it stands."""
    given = recipe(name)
    levels = given.detector.actionformer.num_levels
    changes = {
        "encoder.backbone": "r2plus1d_tiny",
        "encoder.reversible": str(given.encoder.reversible).lower(),
        "encoder.weights": "null",
        "encoder.frozen_stages": min(0, given.encoder.frozen_stages),  # the small one has few
        "data.clip_frames": 32 if given.data.num_clips == 1 else 8,
        "data.num_clips": min(4, given.data.num_clips),
        "data.resize": 18,
        "data.crop": 16,
        "detector.num_steps": 2**levels,
        "detector.neck_dim": 16,
        "detector.fc_dim": 16,
        "detector.head_dim": 16,
        "detector.roi_bins": 8,
        "detector.actionformer.embed_dim": 16,
        "detector.actionformer.head_dim": 16,
    }
    return recipe(name, *(f"{key}={value}" for key, value in changes.items()))


def inputs(settings: Settings) -> torch.Tensor:
    """What one sample of a data set is to the network."""
    data, width = settings.data, settings.data.num_features
    if width is not None:
        return torch.randn(1, width, settings.detector.num_steps)
    shape = (1, data.num_clips, 3, data.clip_frames, data.crop, data.crop)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_takes_a_step_at_reduced_size(name):
    settings = reduced(name)
    num_steps, width = settings.detector.num_steps, settings.data.num_features
    network = build_network(settings, num_classes=3).train()
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.optimizer))
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    truth = [torch.tensor([[2.0, num_steps / 2.0]])], [torch.tensor([1])]
    loss, parts = network(inputs(settings), *truth, generator=torch.Generator().manual_seed(0))
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and len(parts) > 1
    changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
    assert any(key.startswith("detector.") for key in changed)
    frozen = width or settings.encoder.frozen
    assert frozen or any(key.startswith("encoder.") for key in changed)


@pytest.mark.parametrize("name", NAMES)
def test_the_clips_of_every_recipe_suit_its_backbone(name):
    settings = recipe(name)
    encoder, data = settings.encoder, settings.data
    assert data.clip_frames % 4 == 0 and data.clip_frames >= 8
    if encoder.backbone.startswith("videomae"):
        assert data.crop % 16 == 0
    one_long_clip = data.num_clips == 1
    assert not one_long_clip or (encoder.clip_ratio == 1 and encoder.steps_per_clip != 1)


@pytest.mark.parametrize("name", OPENTAD_RE2TAL)
def test_the_recipes_of_re2tal_have_the_values_of_opentads_configuration(name):
    settings, of_activitynet = recipe(name), name.startswith("activitynet")
    data, detector, optimizer = settings.data, settings.detector, settings.optimizer
    own = detector.actionformer
    assert (data.num_clips, data.stride_frames, data.crop) == (1, None, 224)
    assert data.clip_frames == (768 if of_activitynet else 1024)
    assert detector.num_steps == (192 if of_activitynet else 512)
    assert (own.embed_dim, own.head_dim) == ((256, 256) if of_activitynet else (512, 512))
    assert (own.num_heads, own.windows, own.position_embedding) == (4, (0,) * 6, of_activitynet)
    assert (own.label_smoothing, own.distance_weight) == ((0.1, 2) if of_activitynet else (0, 1))
    assert own.normaliser_start == (200 if of_activitynet else 100)
    assert (optimizer.encoder_lr, optimizer.weight_decay, optimizer.gradient_clip) == (1e-5, 0.05, 1)
    assert optimizer.detector_lr == (1e-3 if of_activitynet else 1e-4)
    assert optimizer.batch_size * optimizer.accumulation_steps == (8 if of_activitynet else 2)
    assert (settings.post.sigma, settings.post.voting_tiou) == (0.7, 0.9 if of_activitynet else 0.7)
    beta = settings.encoder.beta
    assert (settings.encoder.reversible, beta.end, beta.schedule) == (True, 1, "constant")
    assert settings.encoder.backbone in ("video_swin_t", "slowfast_101_mmaction2")


@pytest.mark.parametrize(
    ("name", "num_features"),
    [("activitynet_re2tal_swin_t", 768), ("activitynet_re2tal_slowfast101", 2304), ("thumos_etad", 512)],
)
def test_the_backbones_of_recipes_give_the_features_of_their_sources(name, num_features):
    with torch.device("meta"):
        assert build_backbone(recipe(name).encoder.backbone).num_features == num_features


def num_windows(path: Path, settings: Settings, subset: str) -> int:
    """How many windows the videos of a subset have, by the durations that the file states."""
    videos = read_annotations(path, subset=subset).values()
    window, overlap = settings.data.window_seconds, settings.data.window_overlap
    return sum(len(windows_of(v.duration or 0, window_seconds=window, overlap=overlap)) for v in videos)


@pytest.mark.ci
def test_subsets_classes_and_windows_of_recipes_are_those_of_the_real_annotations(shared_real):
    annotations = shared_real / "annotations"
    multithumos = annotations / "multithumos.json"
    classes = {a.label for v in read_annotations(multithumos).values() for a in v.actions}
    assert len(classes) == 65
    settings = recipe("multithumos_actionformer")
    assert num_windows(multithumos, settings, settings.data.train_subset) == 742
    assert num_windows(multithumos, recipe("multithumos_i3d_features"), "training") == 277
    assert len(read_annotations(multithumos, subset=settings.data.val_subset)) == 213
    # THUMOS-14's own file states no durations; the videos are the same.
    for name in ("thumos_re2tal_swin_t", "thumos_re2tal_slowfast101"):
        assert num_windows(multithumos, recipe(name), "training") == 1133
    for data, file, train, val in (
        ("thumos", "thumos14/thumos_gt.json", 200, 210),
        ("activitynet", "anet13/anet13_rebuilt_trainval_gt.json", 9649, 4728),
    ):
        counts = Counter(video.subset for video in read_annotations(annotations / file).values())
        for settings in (recipe(name) for name in NAMES if name.startswith(data)):
            assert counts[settings.data.train_subset] == train
            assert counts[settings.data.val_subset] == val
