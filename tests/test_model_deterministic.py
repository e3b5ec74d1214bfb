"""A step in PyTorch's deterministic mode: nothing that it refuses on CUDA, and the usual numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.backbones import BACKBONES, WITHOUT_RESIDUALS
from model.detector.settings import DetectorSettings
from model.deterministic import FrameMaxPool, average_steps, interpolate_steps
from model.network import Network
from model.settings import EncoderSettings

# Operations of aten behind the list in the documentation of torch.use_deterministic_algorithms (2.11), that
# are an error on CUDA.
REFUSED = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward"),
    *("fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"),
    *("nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "_embedding_bag_backward"),
    *("put_", "histc", "bincount", "median", "nanmedian", "kthvalue", "cumsum", "cumsum_"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
}  # fmt: skip


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Operations(TorchDispatchMode):
    """Collects the names of all operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def step_of(backbone: str, device: str = "cpu") -> nn.Module:
    """A network after forward and backward; features are averaged to 4 steps and interpolated to 12."""
    torch.manual_seed(0)
    reversible = backbone not in WITHOUT_RESIDUALS
    encoder = EncoderSettings(
        backbone=backbone, reversible=reversible, clip_ratio=0.5, clips_per_forward=1, steps_per_clip=2
    )
    detector = DetectorSettings(num_steps=12, neck_dim=16, fc_dim=16, head_dim=16, roi_bins=4)
    network = Network(encoder, detector, num_classes=3).to(device)
    clips = torch.randint(0, 256, (1, 2, 3, 16, 32, 32), dtype=torch.uint8)
    segments, labels = torch.tensor([[1.0, 4.0]]), torch.tensor([1])
    generator = torch.Generator().manual_seed(0)
    loss, _ = network(clips.to(device), [segments], [labels], generator=generator)
    loss.backward()
    return network


# A network of each family: what deeper ones run more often is the same
FAMILIES = ("r2plus1d_tiny", "slowfast_50", "tsm_r18", "video_swin_t", "videomae_s", "i3d")
# I3D pools over time, too; PyTorch has an ordered backward of that since 2.13, the release that is pinned.
SINCE_2_13 = {"i3d": {"max_pool3d_with_indices_backward"}}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_step_runs_nothing_that_cuda_refuses(deterministic, backbone):
    with Operations() as operations:
        step_of(backbone)
    assert not operations.names & (REFUSED - SINCE_2_13.get(backbone, set()))


def test_the_usual_step_does_which_is_why_it_has_another():
    with Operations() as operations:
        step_of("r2plus1d_tiny")
    assert operations.names & REFUSED == {"_adaptive_avg_pool2d_backward", "upsample_linear1d_backward"}


def test_every_family_is_among_them():
    modules = {builder.__module__ for builder in BACKBONES.values()}
    assert {BACKBONES[name].__module__ for name in FAMILIES} == modules


@pytest.mark.parametrize(("old", "new"), [(1, 4), (3, 12), (12, 3), (7, 5), (5, 5), (5, 7), (9, 1)])
@pytest.mark.parametrize("ours, usual", [
    (interpolate_steps, lambda x, size: F.interpolate(x, size=size, mode="linear", align_corners=False)),
    (average_steps, F.adaptive_avg_pool1d),
])  # fmt: skip
def test_values_and_gradients_are_the_usual_ones(deterministic, ours, usual, old, new):
    x = torch.randn(2, 3, old, generator=torch.Generator().manual_seed(0))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = ours(a, new), usual(b, new)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    # sums of up to 12 terms near 1, each rounded to 6e-8
    assert torch.allclose(found, wanted, atol=1e-6) and torch.allclose(a.grad, b.grad, atol=1e-6)


def test_the_dtype_of_features_stays(deterministic):
    x = torch.randn(1, 2, 6, dtype=torch.bfloat16)
    assert interpolate_steps(x, 4).dtype == average_steps(x, 4).dtype == torch.bfloat16


@pytest.mark.parametrize("channels_last", [False, True])
def test_pooling_of_frames_is_that_of_volumes(deterministic, channels_last):
    x = torch.randn(2, 3, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last_3d) if channels_last else x
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = FrameMaxPool(3, 2, 1)(a), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))(b)
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-6)  # a pixel can be the largest of four windows


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", FAMILIES)
def test_two_steps_on_a_gpu_have_equal_bits(deterministic, monkeypatch, backbone):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if backbone in SINCE_2_13 and torch.__version__ < (2, 13):
        with pytest.raises(RuntimeError, match="deterministic"):  # loud, and not other bits
            step_of(backbone, "cuda")
        return
    once, again = (step_of(backbone, "cuda") for _ in range(2))
    for one, other in zip(once.parameters(), again.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)
