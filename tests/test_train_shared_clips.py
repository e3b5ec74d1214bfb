"""Clips that several windows show: encoded once, with the features that each window would have had alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.detector.settings import DetectorSettings
from model.encode import encode_some
from model.network import Network
from model.settings import EncoderSettings
from pipeline.batch import Batch
from pipeline.windows import clip_frame_numbers
from train.inference import infer
from train.shared_clips import SharedClips

FPS, FRAMES, CLIPS, LENGTH = 8, 96, 8, 4  # a video of 12 s


class Counting(nn.Module):
    """The encoder, which counts the clips that it is given."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.count = encoder, 0

    def forward(self, clips: Tensor) -> Tensor:
        self.count += len(clips)
        return self.encoder(clips)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    encoder = EncoderSettings(backbone="r2plus1d_tiny", clips_per_forward=3)
    network = Network(encoder, DetectorSettings(num_steps=8), num_classes=2).eval()
    network.encoder = Counting(network.encoder)
    return network


def batch_of(*windows: tuple[str, float, float], padding: tuple[bool, ...] = ()) -> Batch:
    """Windows (key, start, end) of videos whose pixels are their frames' numbers, and the key's."""
    frames = [
        clip_frame_numbers(
            (start, end), fps=FPS, num_frames=FRAMES, num_clips=CLIPS, clip_frames=LENGTH, stride_frames=1
        )
        for _, start, end in windows
    ]
    numbers = torch.stack([torch.from_numpy(frames_of) for frames_of in frames])  # (B, N, L)
    padded = padding or (False,) * len(windows)
    first = torch.tensor([ord(key) for key, _, _ in windows]).view(-1, 1, 1)
    noise = torch.randint(0, 256, (512, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    inputs = noise[numbers + first].transpose(2, 3).to(torch.uint8)  # (B, N, 3, L, 16, 16)
    inputs[torch.tensor(padded)] = 0
    return Batch(
        inputs=inputs,
        keys=tuple(key for key, _, _ in windows),
        windows=torch.tensor([window[1:] for window in windows], dtype=torch.float64),
        durations=torch.full((len(windows),), 12.0, dtype=torch.float64),
        ends=torch.tensor([end for _, _, end in windows], dtype=torch.float64),
        gt_segments=(torch.zeros(0, 2, dtype=torch.float64),) * len(windows),
        gt_labels=(torch.zeros(0, dtype=torch.int64),) * len(windows),
        padding=padded,
        frames=numbers,
    )


def encoded(network: Network, *batches: Batch) -> list[int]:
    """How many clips each batch costs; its features are checked against those of all of its clips."""
    shared, counts = SharedClips(network), []
    for batch in batches:
        network.encoder.count = 0
        features = shared.features(batch)
        counts.append(network.encoder.count)
        wanted = network.encode(batch.inputs, kept=None)
        torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5)  # rounding of other chunks of clips
    return counts


def test_windows_that_overlap_by_half_cost_half(network):
    windows = [batch_of(("a", start, start + 4.0)) for start in (0.0, 2.0, 4.0)]
    assert encoded(network, *windows) == [8, 4, 4]


def test_windows_of_one_batch_share_as_well_and_with_the_batch_before(network):
    both = batch_of(("a", 0.0, 4.0), ("a", 2.0, 6.0))
    assert encoded(network, both, batch_of(("a", 4.0, 8.0), ("a", 4.0, 8.0)), both) == [12, 4, 8]


def test_other_videos_and_other_frames_are_not_shared(network):
    assert encoded(network, batch_of(("a", 0.0, 4.0)), batch_of(("b", 0.0, 4.0))) == [8, 8]
    assert encoded(network, batch_of(("a", 0.0, 4.0)), batch_of(("a", 2.25, 6.25))) == [8, 8]


def test_a_black_window_gives_nothing_to_those_that_were_read(network):
    black = batch_of(("a", 0.0, 4.0), ("a", 2.0, 6.0), padding=(True, False))
    assert encoded(network, black) == [1 + 8]
    alone = batch_of(("a", 0.0, 4.0), padding=(True,))
    assert encoded(network, alone, batch_of(("a", 0.0, 4.0)), alone) == [1, 8, 1]


def test_infer_finds_what_each_window_shows_alone(network):
    batches = [batch_of(("a", start, start + 4.0)) for start in (0.0, 2.0, 8.0)]
    network.encoder.count = 0
    found = list(infer(network, batches))
    assert network.encoder.count == 8 + 4 + 8
    for window, batch in zip(found, batches, strict=True):
        [alone] = infer(network, [batch])
        for name in ("segments", "quality", "class_scores", "boundary"):
            one, other = (torch.from_numpy(getattr(of, name)) for of in (window, alone))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # rounding of other chunks of clips


def test_an_encoder_that_drops_the_dimension_of_a_single_clip_is_named():
    def squeezed(clips: Tensor) -> Tensor:
        return clips.float().mean((3, 4)).squeeze(0)

    encoder, batch = nn.Module(), batch_of(("a", 0.0, 4.0))
    encoder.forward = squeezed
    with pytest.raises(ValueError, match=r"encoder: got features of shape \(3, 4\), want \(1, D, t\)"):
        encode_some(encoder, batch.inputs[0], torch.arange(5), clips_per_forward=4)
