"""Videos that fill their window in part: what lies behind their end is neither seen nor reported."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.detector.build import build_detector
from model.detector.detector import Detector, hold_last, valid_steps
from model.detector.settings import DetectorSettings
from pipeline.batch import Batch
from train.fused_outputs import read_fused
from train.inference import raw_windows
from train.postprocess import PostSettings, postprocess_videos
from train.raw_outputs import write_raw

D, T, K = 6, 16, 3
SHARES = torch.tensor([0.3, 1.0, 0.01], dtype=torch.float64)  # 5, 16 and 4 of 16 steps
TRUTH = (
    [torch.tensor([[1.0, 4.5]]), torch.tensor([[2.0, 5.0], [7.0, 15.0]]), torch.zeros(0, 2)],
    [torch.tensor([1]), torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
)
KINDS = ("proposals", "etad", "actionformer")


def detector_of(kind: str, num_steps: int = T) -> Detector:
    """In float64, with the same weights for any number of steps (but ActionFormer's, which has a mask)."""
    torch.manual_seed(0)
    settings = DetectorSettings(
        kind=kind,
        num_steps=num_steps,
        neck_dim=16,
        fc_dim=16,
        head_dim=16,
        roi_bins=4,
        proposal_ratio=1.0,
        proposal_sampling="random",
        etad={"balancing": "weighted", "class_scores": True, "step_shortcut": True},
        actionformer={
            "embed_dim": 16,
            "head_dim": 16,
            "num_heads": 2,
            "max_distances": (4.0, 8.0),
            "attention_windows": (3,),
            "drop_path": 0.0,
        },
    )
    return build_detector(settings, num_features=D, num_classes=K).double().eval()


def features_of(seed: int = 1, steps: int = T) -> torch.Tensor:
    return torch.randn(3, D, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_other_ends(features: torch.Tensor) -> torch.Tensor:
    """The same, but for what lies behind each video's end."""
    other, t = features_of(2, features.shape[2]) * 100, features.shape[2]
    for i, share in enumerate(SHARES.tolist()):
        other[i, :, : max(1, math.ceil(share * t - 0.5))] = features[
            i, :, : max(1, math.ceil(share * t - 0.5))
        ]
    return other


def loss_of(detector: Detector, features: torch.Tensor) -> torch.Tensor:
    return detector.masked_loss(features, *TRUTH, SHARES, generator=torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("steps", [T, 10, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_do_not_depend_on_what_is_behind_the_end(kind, steps):
    results = []
    for features in (features_of(steps=steps), with_other_ends(features_of(steps=steps))):
        detector = detector_of(kind)
        features.requires_grad_()
        loss = loss_of(detector, features)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in detector.parameters() if p.grad is not None)])
        ends = [max(1, math.ceil(share * steps - 0.5)) for share in SHARES.tolist()]
        assert all(not features.grad[i, :, end:].any() for i, end in enumerate(ends))
        assert all(features.grad[i, :, :end].any() for i, end in enumerate(ends[:2]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["proposals", "etad"])
def test_a_short_video_is_treated_as_in_a_window_that_ends_with_it(kind):
    """Against a detector that was built for so many steps, video by video."""
    features, detector = features_of(), detector_of(kind)
    losses, found = [], detector.masked_predict(features, SHARES)
    generator = torch.Generator().manual_seed(0)
    for i, steps in enumerate(valid_steps(SHARES, T)):
        alone = detector_of(kind, steps)
        own = hold_last(features, SHARES)[i : i + 1, :, :steps]
        truth = [TRUTH[0][i].clamp(max=steps)], [TRUTH[1][i]]
        losses.append(alone.loss(own, *truth, generator=generator)[0])
        want, number = alone.predict(own), steps * (steps + 1) // 2
        assert int(found.counts[i].sum()) == number and found.num_steps[i] == steps
        torch.testing.assert_close(found.segments[i][found.counts[i]], want.segments[0])
        torch.testing.assert_close(found.quality[i][found.counts[i]], want.quality[0])
        torch.testing.assert_close(found.class_scores[i][found.counts[i]], want.class_scores[0])
        torch.testing.assert_close(found.boundary[i, :, :steps], want.boundary[0])
    torch.testing.assert_close(loss_of(detector, features), torch.stack(losses).mean())


def test_actionformer_masks_as_its_authors_do():
    """Its own mask, which the golden fixtures prove, reaches it unchanged."""
    features, detector = features_of(), detector_of("actionformer")
    mask = torch.arange(T) < torch.tensor(valid_steps(SHARES, T))[:, None]
    want = detector_of("actionformer").loss(
        hold_last(features, SHARES) * mask[:, None], *TRUTH, generator=torch.Generator(), mask=mask
    )[0]
    torch.testing.assert_close(loss_of(detector, features), want)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_videos_are_treated_as_without_a_mask(kind):
    features, detector = features_of()[:1], detector_of(kind)
    whole, generator = torch.ones(1, dtype=torch.float64), torch.Generator().manual_seed(0)
    masked = detector.masked_loss(features, TRUTH[0][1:2], TRUTH[1][1:2], whole, generator=generator)[0]
    generator = torch.Generator().manual_seed(0)
    plain = detector_of(kind).loss(features, TRUTH[0][1:2], TRUTH[1][1:2], generator=generator)[0]
    torch.testing.assert_close(masked, plain)
    torch.testing.assert_close(
        detector.masked_predict(features, whole).segments, detector.predict(features).segments
    )


def batch_of_shares() -> Batch:
    """Windows of 20 s, of which the videos fill their shares."""
    empty = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return Batch(
        inputs=torch.zeros(3, 1, 3, 1, 8, 8, dtype=torch.uint8),
        keys=("a", "b", "c"),
        windows=torch.tensor([[0.0, 20.0]] * 3, dtype=torch.float64),
        durations=20 * SHARES,
        ends=20 * SHARES,
        gt_segments=(empty[0],) * 3,
        gt_labels=(empty[1],) * 3,
        padding=(False,) * 3,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_raw_windows_end_with_the_video_and_hold_nothing_behind_it(kind):
    batch = batch_of_shares()
    torch.testing.assert_close(batch.video_shares, SHARES)
    found = list(raw_windows(detector_of(kind).masked_predict(features_of(), SHARES), batch))
    assert [w.num_steps for w in found] == [5, 16, 4]
    for window in found:
        start, end = window.window
        assert start == 0 and end / window.num_steps == pytest.approx(20 / T)  # a step lasts as long in all
        assert window.duration <= end < window.duration + 4 * 20 / T
        assert window.boundary.shape == (2, window.num_steps)
        assert len(window.segments) == len(window.quality) == len(window.class_scores) > 0
        assert np.all((window.segments >= 0) & (window.segments <= window.num_steps))


def moved(detector: Detector, seed: int) -> Detector:
    """Its weights moved at random, as in a run with another seed."""
    generator = torch.Generator().manual_seed(seed)
    for weight in detector.parameters():
        weight.data += 0.15 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return detector


def test_rows_of_actionformer_are_the_same_points_in_each_run_so_that_runs_can_be_fused(tmp_path):
    paths, runs = [tmp_path / "a.h5", tmp_path / "b.h5"], []
    for seed, path in enumerate(paths):
        prediction = moved(detector_of("actionformer"), seed).masked_predict(features_of(), SHARES)
        runs.append(list(raw_windows(prediction, batch_of_shares())))
        write_raw(path, runs[-1], classes=["x", "y", "z"], metadata={})
    points = len(detector_of("actionformer").predict(features_of()).segments[0])
    assert {len(window.segments) for windows in runs for window in windows} == {points}
    kept = [[window.quality > 0 for window in windows] for windows in runs]
    assert any((a != b).any() for a, b in zip(*kept, strict=True)), "choose other seeds: all runs are alike"
    for fused, a, b in zip(read_fused(paths), *runs, strict=True):
        np.testing.assert_allclose(fused.segments, (a.segments + b.segments) / 2, rtol=1e-6)  # float32
    for windows, rows in zip(runs, kept, strict=True):  # what is left of the others changes no detection
        alone = [
            replace(w, segments=w.segments[r], quality=w.quality[r], class_scores=w.class_scores[r])
            for w, r in zip(windows, rows, strict=True)
        ]
        assert all(len(window.segments) < points for window in (alone[0], alone[2]))
        found = postprocess_videos(windows, ["x", "y", "z"], PostSettings())
        assert found["a"] and found["b"]
        assert found == postprocess_videos(alone, ["x", "y", "z"], PostSettings())


def test_the_last_feature_within_a_video_stands_for_all_behind_it():
    features = torch.arange(8.0).expand(3, 1, 8)
    held = hold_last(features, torch.tensor([0.5, 1.0, 0.05]))[:, 0]
    assert held.tolist() == [[0, 1, 2, 3, 3, 3, 3, 3], list(range(8)), [0] * 8]
    assert valid_steps(torch.tensor([0.5, 1.0, 0.05, 0.51]), 8) == (4, 8, 4, 5)
