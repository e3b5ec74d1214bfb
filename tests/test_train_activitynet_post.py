"""How many detections the recipes for ActivityNet keep, and what the general defaults would lose there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.annotations import Video
from train.evaluation.evaluate import evaluate
from train.evaluation.files import read_ground_truth
from train.postprocess import PostSettings, RawWindow, postprocess_video
from train.settings import RECIPES, load_settings

T, VIDEOS = 128, 60


def tiou_with(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    inter = np.minimum(segments[:, None, 1], others[None, :, 1])
    inter = np.clip(inter - np.maximum(segments[:, None, 0], others[None, :, 0]), 0, None)
    lengths = np.diff(segments, axis=1) + np.diff(others, axis=1)[:, 0][None]
    return inter / (lengths - inter)


def simulated(video: Video, number: int) -> RawWindow:
    """All 8,256 proposals of a window as a middling detector scores them: by its noisy idea of the actions.

    Three places without an action look like one up to a tIoU of 0.6.
    """
    rng = np.random.default_rng(number)
    start, end = np.triu_indices(T)
    proposals = np.stack([start, end + 1], 1).astype(float)
    actions = np.array([[a.start, a.end] for a in video.actions]) / video.duration * T
    lengths = np.diff(actions, axis=1)
    believed = np.sort(actions + rng.normal(0, 1, actions.shape) * np.minimum(0.1 * lengths + 0.5, 6), 1)
    believed[:, 1] = np.maximum(believed[:, 1], believed[:, 0] + 0.5)
    wrong = np.sort(rng.uniform(0, T, (3, 2)), 1)
    tiou = tiou_with(proposals, believed)
    overlap = np.maximum(tiou.max(1), 0.6 * tiou_with(proposals, wrong).max(1))
    quality = overlap / (1 + np.exp(-12 * (overlap - 0.7))) * np.exp(rng.normal(0, 0.2, len(proposals)))
    refined = (proposals + believed[tiou.argmax(1)]) / 2
    segments = np.where((tiou.max(1) > 0.5)[:, None], refined, proposals)
    return RawWindow(
        key=video.key,
        window=(0.0, video.duration),
        duration=video.duration,
        num_steps=T,
        segments=np.clip(np.sort(segments, 1), 0, T).astype(np.float32),
        quality=np.clip(quality, 0, 1).astype(np.float32),
        class_scores=np.ones((len(proposals), 1), dtype=np.float32),
        boundary=np.ones((2, T), dtype=np.float32),
    )


@pytest.mark.slow
def test_the_recipe_keeps_200_detections_and_an_ar_that_the_defaults_would_lose(shared_real: Path):
    truth = read_ground_truth(
        shared_real / "annotations/anet13/anet13_rebuilt_trainval_gt.json", "validation", hint=None
    )
    keys = sorted(key for key, video in truth.videos.items() if video.actions and video.duration)[:VIDEOS]
    videos = {key: truth.videos[key] for key in keys}
    recipe = load_settings(RECIPES / "activitynet_r2plus1d34.yaml").post
    found = {}
    for name, post in (("recipe", recipe), ("defaults", PostSettings())):
        post = post.model_copy(update={"quality_power": 1.0})  # ETAD's product, as docs/benchmarks.md has it
        results = {}
        for number, (key, video) in enumerate(videos.items()):
            scores = {key: {video.actions[0].label: 0.85, "another": 0.05}}
            window = simulated(video, number)
            results[key] = postprocess_video([window], ["any"], post, external_scores=scores)
        metrics = evaluate(videos, results, tiou=(0.5, 0.75, 0.95), protocol="three")
        count = sum(map(len, results.values())) / len(results)
        found[name] = (count, metrics["recall"]["AR"]["100"], metrics["average_mAP"])
    assert found["recipe"][0] == 200 and found["defaults"][0] < 40
    assert found["recipe"][1] > found["defaults"][1] + 0.03, found
    assert abs(found["recipe"][2] - found["defaults"][2]) < 0.01, found


def test_etads_own_recipe_keeps_as_many():
    for name in ("activitynet_etad_paper", "activitynet_r2plus1d34"):
        post = load_settings(RECIPES / f"{name}.yaml").post
        assert (post.max_detections, post.min_score) == (200, 0)
