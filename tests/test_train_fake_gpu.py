"""A whole step and a validation on a GPU that computes nothing: every tensor is where it has to be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fake_gpu import CUDA, GpuTensor, fake_gpu, to_gpu
from torch import Tensor

from model.backbones import BACKBONES, WITHOUT_RESIDUALS
from model.backbones.slowfast import TakeFrames
from model.detector.ground_truth import PaddedActions
from model.network import ClipEncoder, Network
from pipeline.batch import Batch
from train.inference import infer
from train.loop import train_step
from train.postprocess import PostSettings, postprocess_videos
from train.run import Progress
from train.settings import Settings, settings_from

# One of each family; the others have more of the same blocks.
LONG = (pytest.mark.slow, pytest.mark.ci)
FAMILIES = ("r2plus1d_tiny", "slowfast_50", "tsm_r18", "video_swin_t", "videomae_s", "i3d")


class Engine:
    """What DeepSpeed does with a network, by PyTorch alone."""

    skipped_steps = 0

    def __init__(self, network: Network):
        self.network = self.module = network
        # foreach is for devices that PyTorch knows; so it takes one tensor at a time
        self.optimizer = torch.optim.AdamW(network.parameters(), foreach=False)

    def __call__(self, *arguments, **options):
        return self.network(*arguments, **options)

    def train(self):
        self.network.train()

    def backward(self, loss: Tensor):
        loss.backward()

    def step(self):
        self.optimizer.step()


PROPOSALS = {"neck_dim": 16, "fc_dim": 32, "head_dim": 16, "roi_bins": 4}
SMALL = {"embed_dim": 16, "head_dim": 16, "max_distances": [4, 8], "attention_windows": [5]}
ACTIONFORMER = {"kind": "actionformer", "actionformer": SMALL}


def settings_of(backbone: str, detector: dict = PROPOSALS, **encoder) -> Settings:
    """Small, but with all that a step has: sampled clips, chunks, steps to average and to interpolate."""
    return settings_from(
        {
            "data": {"shards": "none", "num_clips": 2, "clip_frames": 16, "resize": 64, "crop": 64},
            "encoder": {
                "backbone": backbone,
                "clip_ratio": 0.5,
                "clips_per_forward": 1,
                "steps_per_clip": 2,
                "slice_mib": 1,
                "reversible": backbone not in WITHOUT_RESIDUALS,
                **encoder,
            },
            "detector": {"num_steps": 12, **detector},
        }
    )


def batch() -> Batch:
    """Two videos of two clips of uint8 pixels, on the CPU as the loader has them; one without actions."""
    return Batch(
        inputs=torch.zeros(2, 2, 3, 16, 64, 64, dtype=torch.uint8),
        keys=("a", "b"),
        windows=torch.tensor([[0.0, 8.0], [0.0, 6.0]], dtype=torch.float64),
        durations=torch.tensor([8.0, 6.0], dtype=torch.float64),
        ends=torch.tensor([8.0, 6.0], dtype=torch.float64),
        gt_segments=(torch.tensor([[2.0, 4.0], [3.0, 7.0]], dtype=torch.float64), torch.zeros(0, 2).double()),
        gt_labels=(torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)),
        padding=(False, False),
        frames=torch.arange(2 * 16).view(1, 2, 16).expand(2, -1, -1),
    )


def step_and_validate(settings: Settings, dtype: torch.dtype) -> tuple[Network, list[str], list[str]]:
    """One step and one validation; the network, and what the host waited for in each."""
    torch.manual_seed(0)
    network = Network(settings.encoder, settings.detector, num_classes=3)
    with fake_gpu() as waits:
        engine = Engine(to_gpu(network, dtype))
        parts = {"settings": settings, "progress": Progress(), "engine": engine, "device": CUDA}
        run = SimpleNamespace(**parts, average=None, set_beta=lambda step: None, set_ratios=lambda step: None)
        result = train_step(run, [batch()], interrupted=False)
        assert result.losses["loss"] == 0 and run.progress.step == 1
        in_step = list(waits)
        waits.clear()
        found = postprocess_videos(infer(network, [batch()]), ["x", "y", "z"], PostSettings())
        assert found.keys() == {"a", "b"} and found["a"]
    return network, in_step, list(waits)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, pytest.param(0.0, marks=LONG)])
@pytest.mark.parametrize(
    "backbone", [FAMILIES[0], *(pytest.param(name, marks=LONG) for name in FAMILIES[1:])]
)
def test_a_step_and_a_validation_run_on_a_gpu(backbone, beta):
    """In bf16 as shipped; the host waits once in a step, for the losses."""
    network, in_step, _ = step_and_validate(settings_of(backbone, beta={"end": beta}), torch.bfloat16)
    assert in_step == ["tolist"]
    for name, parameter in network.named_parameters():
        assert isinstance(parameter.grad, GpuTensor), name
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == torch.bfloat16, name


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("encoder", [{"reversible": False}, {"frozen": True}, {"train_batch_norm": True}])
def test_other_ways_to_train_run_on_a_gpu_in_float32(encoder):
    _, in_step, _ = step_and_validate(settings_of("r2plus1d_tiny", **encoder), torch.float32)
    assert in_step == ["tolist"]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("strategy", ["dpp", "importance"])
def test_clips_that_are_chosen_late_run_on_a_gpu_and_wait_once_more(strategy):
    """By features before the losses are read, by gradients after; on the GPU that choice would need more."""
    network, in_step, _ = step_and_validate(
        settings_of("r2plus1d_tiny", clip_sampling=strategy), torch.bfloat16
    )
    copied = "aten._to_copy.default to the CPU"
    assert in_step == ([copied, "tolist"] if strategy == "dpp" else ["tolist", copied])
    assert all(isinstance(parameter.grad, GpuTensor) for parameter in network.encoder.parameters())


@pytest.mark.ci
@pytest.mark.slow
def test_a_step_and_a_validation_of_the_other_detector_run_on_a_gpu():
    settings = settings_of("r2plus1d_tiny", ACTIONFORMER)
    network, in_step, _ = step_and_validate(settings, torch.bfloat16)
    assert in_step == ["tolist"]
    assert all(isinstance(parameter.grad, GpuTensor) for parameter in network.parameters())


def test_every_family_is_among_them():
    modules = {builder.__module__ for builder in BACKBONES.values()}
    assert {BACKBONES[name].__module__ for name in FAMILIES} == modules


# ------------------------------------------------------------------------------------ broken on purpose


def refused(backbone: str) -> str:
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device") as caught:
        step_and_validate(settings_of(backbone), torch.bfloat16)
    return str(caught.value)


@pytest.mark.slow
def test_ground_truth_that_stays_on_the_cpu_is_found(monkeypatch):
    monkeypatch.setattr(PaddedActions, "to", lambda self, device: self)
    assert "on cpu" in refused("r2plus1d_tiny")


@pytest.mark.slow
def test_frame_numbers_that_stay_on_the_cpu_are_found(monkeypatch):
    def forward(self, x):
        return x.index_select(2, self.rule(x.shape[2], self.alpha))

    monkeypatch.setattr(TakeFrames, "forward", forward)
    assert "index_select" in refused("slowfast_50")


def test_pixels_normalised_on_the_cpu_are_found(monkeypatch):
    monkeypatch.setattr(ClipEncoder, "forward", lambda self, clips: (clips.float() - self.mean).mean((3, 4)))
    assert "sub" in refused("r2plus1d_tiny")


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: bool(x.any())])
def test_a_value_that_is_read_on_the_way_is_found(monkeypatch, read):
    forward = ClipEncoder.forward

    def reading(self, clips):
        features = forward(self, clips)
        read(features)
        return features

    monkeypatch.setattr(ClipEncoder, "forward", reading)
    _, in_step, _ = step_and_validate(settings_of("r2plus1d_tiny"), torch.bfloat16)
    assert len(in_step) > 1
