"""How far the encoder's gradient from sampled clips is from the full one: bias, noise, time, by strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from model.detector.settings import DetectorSettings
from model.network import Network
from model.sampling import num_kept
from model.settings import EncoderSettings
from tools.benchmarks.common import check_backbone
from tools.synthetic.scene import CLASSES, Scenario, draw_scenario, render

FPS = 16  # of the rendered videos
STRATEGIES: tuple[str, ...] = get_args(EncoderSettings.model_fields["clip_sampling"].annotation)


@dataclass(frozen=True)
class SamplingOptions:
    """One run of the benchmark."""

    backbone: str
    videos: int
    clips: int
    frames: int  # of a clip
    size: int  # pixels of a frame's side
    ratios: tuple[float, ...]
    draws: int
    steps: int  # of training before anything is measured
    clips_per_forward: int
    seed: int
    device: str  # cpu or cuda

    @property
    def num_steps(self) -> int:
        """Feature steps of the detector: one a clip, but at least the 4 that it wants."""
        return max(4, self.clips)

    def check(self) -> None:
        """ValueError for a backbone or ratio that cannot be, before anything is measured."""
        check_backbone(self.backbone)
        for ratio in self.ratios:
            num_kept(self.clips, ratio)


@dataclass(frozen=True)
class SamplingRow:
    """One strategy at one ratio; bias, noise and error are shares of the full gradient's norm."""

    strategy: str
    ratio: float
    kept: int  # clips of each video
    factor: float  # how long the mean gradient is along the full one
    bias: float  # of the mean gradient, the factor taken out; it never averages out
    noise: float  # standard deviation of a draw, the factor taken out
    error: float  # of a single draw: both together
    cosine: float  # mean, between a draw and the full gradient
    seconds: float  # of a step


@dataclass(frozen=True)
class Videos:
    """Rendered videos with their actions in feature steps."""

    clips: Tensor  # (B, N, C, L, H, W) uint8
    gt_segments: list[Tensor]
    gt_labels: list[Tensor]


def _scenario(rng: np.random.Generator, seconds: float) -> Scenario:
    while True:  # some have no action
        scenario = draw_scenario(rng, fps=FPS, shortest=seconds, longest=seconds)
        if scenario.actions:
            return scenario


def render_videos(options: SamplingOptions) -> Videos:
    """The videos of the built-in data, as long as their clips together, each with an action or more."""
    rng, num_frames = np.random.default_rng(options.seed), options.clips * options.frames
    scenarios = [_scenario(rng, num_frames / FPS) for _ in range(options.videos)]
    frames = np.stack([np.stack([*render(one, rng, size=options.size)]) for one in scenarios])
    shape = (options.clips, options.frames)
    clips = torch.unflatten(torch.from_numpy(frames), 1, shape)  # (B, N, L, H, W, C)
    steps = options.num_steps / (num_frames / FPS)  # feature steps a second
    return Videos(
        clips.permute(0, 1, 5, 2, 3, 4).contiguous().to(options.device),
        [torch.tensor([[a.start * steps, a.end * steps] for a in one.actions]) for one in scenarios],
        [torch.tensor([CLASSES.index(a.label) for a in one.actions]) for one in scenarios],
    )


def build_network(options: SamplingOptions, strategy: str, ratio: float) -> Network:
    """The same network for every strategy; all proposals are trained on, so that clips alone are sampled.

    In evaluation mode: dropout would add a noise of its own.
    """
    torch.manual_seed(options.seed)
    encoder = EncoderSettings(
        backbone=options.backbone,
        reversible=options.backbone != "i3d",
        clip_sampling=strategy,
        clip_ratio=ratio,
        clips_per_forward=options.clips_per_forward,
        gradient_scale="inverse",
    )
    sizes = {"neck_dim": 64, "fc_dim": 128, "head_dim": 64, "roi_bins": 16}
    detector = DetectorSettings(num_steps=options.num_steps, proposal_ratio=1.0, **sizes)
    return Network(encoder, detector, num_classes=len(CLASSES)).to(options.device).eval()


def _loss(network: Network, videos: Videos, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loss: Tensor = network(videos.clips, videos.gt_segments, videos.gt_labels, generator=generator)[0]
    return loss


def train(options: SamplingOptions, videos: Videos) -> dict[str, Tensor]:
    """The weights after some steps with the full gradient: those of a random network say little."""
    network = build_network(options, "random", 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(options.steps):
        optimizer.zero_grad()
        _loss(network, videos, step).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.state_dict()


def encoder_gradient(network: Network, videos: Videos, seed: int) -> Tensor:
    """The gradient of all parameters of the encoder in one vector, float64."""
    network.zero_grad()
    _loss(network, videos, seed).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.flatten() for p in network.encoder.parameters() if p.grad is not None]
    return torch.cat(gradients).double()


@dataclass(frozen=True)
class Moments:
    """What repeated draws of a vector tell, measured against the full one."""

    factor: float
    bias: float
    noise: float
    cosine: float


def moments(draws: Iterator[Tensor], full: Tensor) -> Moments:
    """Mean and spread of two draws or more of an estimate of `full`; none is kept."""
    total, squares, cosines, count = torch.zeros_like(full), 0.0, 0.0, 0
    for draw in draws:
        count += 1
        total += draw
        squares += draw.square().sum().item()
        cosines += torch.cosine_similarity(draw, full, dim=0).item()
    mean, norm = total / count, full.norm().item()
    variance = max(squares - count * mean.square().sum().item(), 0.0) / (count - 1)
    factor = (mean @ full).item() / norm**2
    # The mean of the draws is itself off by chance: its variance is not bias.
    bias = max((mean - factor * full).square().sum().item() - variance / count, 0.0) ** 0.5
    scale = max(abs(factor), 1e-12) * norm
    return Moments(factor, bias / scale, variance**0.5 / scale, cosines / count)


@dataclass(frozen=True)
class Reference:
    """What every strategy is measured on: videos, weights, and the full gradient of the encoder there."""

    videos: Videos
    weights: dict[str, Tensor]
    gradient: Tensor

    @staticmethod
    def of(options: SamplingOptions) -> Reference:
        """Render the videos, train on them, and compute the full gradient."""
        videos = render_videos(options)
        network = build_network(options, "random", 1.0)
        weights = train(options, videos)
        network.load_state_dict(weights)
        return Reference(videos, weights, encoder_gradient(network, videos, 0))


def measure(options: SamplingOptions, reference: Reference, strategy: str, ratio: float) -> SamplingRow:
    """One row: `draws` steps with other seeds, after one that warms up."""
    network = build_network(options, strategy, ratio)
    network.load_state_dict(reference.weights)
    clock: Callable[[], float] = time.process_time if options.device == "cpu" else time.perf_counter
    encoder_gradient(network, reference.videos, 0)
    seconds = 0.0

    def draws() -> Iterator[Tensor]:
        nonlocal seconds
        for draw in range(options.draws):
            start = clock()
            gradient = encoder_gradient(network, reference.videos, options.seed + 1 + draw)
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds += clock() - start
            yield gradient

    found = moments(draws(), reference.gradient)
    return SamplingRow(
        strategy=strategy,
        ratio=ratio,
        kept=num_kept(options.clips, ratio),
        factor=round(found.factor, 4),
        bias=round(found.bias, 4),
        noise=round(found.noise, 4),
        error=round((found.bias**2 + found.noise**2) ** 0.5, 4),
        cosine=round(found.cosine, 4),
        seconds=round(seconds / options.draws, 4),
    )


def cost(row: SamplingRow, random: SamplingRow) -> float:
    """Squared error times seconds, against the random draw's: the time to an average as good, if unbiased."""
    return (row.error**2 * row.seconds) / max(random.error**2 * random.seconds, 1e-12)
