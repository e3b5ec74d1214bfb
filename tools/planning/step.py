"""One training step of a run's network on fake tensors: the most bytes alive at one time, and what for.

Parameters and clips are fake (torch.FakeTensorMode), so everything computed from them is, and costs neither
memory nor time; clip numbers, proposals and truth are real, because code reads them. The step is the real
one: Network.forward with sampled encoding, and its backward, in the ZeRO mode's way of keeping gradients. A
piece of clips allocates what the one before allocated, so the first ones stand for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from model.network import Network
from model.rewire import rewired_stages, set_beta
from tools.benchmarks.trackers import LiveBytes
from train.settings import Settings

WEIGHTS, GRADIENTS, FRAMES, BUCKETS = "weights", "gradients", "frames", "gradient buckets"
BOUNDARIES, WORKING, FEATURES = "stage boundaries", "working set", "features and detector"
ACTIONS = 8  # true actions per video in the estimate: they count for next to nothing
RUN_PIECES = {False: 1, True: 2}  # by whether there is a graph: the second finds the gradients of the first


@dataclass(frozen=True)
class StepPeak:
    """Bytes by part when most were alive, and what the engine's own memory is reckoned from."""

    parts: dict[str, int]  # in the backward pass
    forward: dict[str, int]  # in the forward pass
    groups: tuple[int, ...]  # trainable numbers (not bytes) of encoder and detector, without the frozen
    tensors: tuple[int, ...]  # numbers of each trainable parameter
    accumulates: bool = False  # several micro steps make a step

    @property
    def total(self) -> int:
        return max(sum(self.parts.values()), sum(self.forward.values()))

    @property
    def trainable(self) -> int:
        return sum(self.groups)

    @property
    def largest_tensor(self) -> int:
        return max(self.tensors)


@dataclass
class Reducer:
    """What DeepSpeed does with a gradient as soon as it is ready: it moves into a bucket allocated before.

    A full bucket is reduced at once: `copies` of it on the way, and what is `kept_share` of all gradients,
    allocated the first time, to stay. partitioned: parameters are, so keep gradients as under ZeRO-3.
    """

    bucket_size: int  # numbers
    copies: int = 0
    kept_share: float = 0.0
    partitioned: bool = False
    filled: int = 0  # numbers in the bucket
    kept: list[Tensor] = field(default_factory=list)

    def take(self, parameter: Tensor, trainable: int) -> None:
        """The gradient of this parameter, unless there is more to come (model/encode.py says so)."""
        if not getattr(parameter, "ds_grad_is_ready", True):
            return
        if self.filled and self.filled + parameter.numel() > self.bucket_size:
            self._reduce(parameter, trainable)
        self.filled += parameter.numel()
        parameter.grad = None

    def _reduce(self, like: Tensor, trainable: int) -> None:
        if self.kept_share and not self.kept:
            self.kept.append(like.new_empty(round(trainable * self.kept_share)))
        [like.new_empty(self.filled) for _ in range(self.copies)]
        self.filled = 0


class _Pieces(nn.Module):
    """Stands in for the encoder: tells the tracker what it is at, and runs the first pieces only."""

    def __init__(self, encoder: nn.Module, tracker: LiveBytes) -> None:
        super().__init__()
        self.encoder, self.tracker = encoder, tracker
        # by whether there is a graph: clips of the largest piece so far, and how often one so large has run
        self.largest: Counter[bool] = Counter()
        self.runs: Counter[bool] = Counter()
        self.one_clip: Tensor | None = None  # (1, D, t), features as the encoder gave them

    def forward(self, clips: Tensor) -> Tensor:
        self.tracker.include([clips], FRAMES)  # a view of the batch, or a copy of some of its clips
        graph = torch.is_grad_enabled()
        news = self._is_news(len(clips), graph)
        if self.one_clip is not None and not news:
            return self.one_clip.new_empty(len(clips), *self.one_clip.shape[1:], requires_grad=graph)
        with_graph = graph and any(p.requires_grad for p in self.encoder.parameters())
        if with_graph:  # what an earlier piece left behind are its gradients
            self.tracker.reassign(WORKING, GRADIENTS)
        self.tracker.part = WORKING
        features: Tensor = self.encoder(clips)
        if with_graph:  # its backward goes on with the working set
            self.tracker.reassign(WORKING, BOUNDARIES)
        else:
            self.tracker.part = FEATURES
        self.one_clip = features.detach()[:1].clone() if self.one_clip is None else self.one_clip
        return features

    def _is_news(self, num_clips: int, graph: bool) -> bool:
        """Whether a piece may allocate what none did before it."""
        if num_clips > self.largest[graph]:
            self.largest[graph], self.runs[graph] = num_clips, 0
        self.runs[graph] += num_clips == self.largest[graph]
        return num_clips == self.largest[graph] and self.runs[graph] <= RUN_PIECES[graph]


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Inside, nn.init.trunc_normal_ does nothing: it draws until the values fit, and fake ones have none."""
    drawing = nn.init.trunc_normal_
    nn.init.trunc_normal_ = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        nn.init.trunc_normal_ = drawing


def _fake_network(settings: Settings, num_classes: int, dtype: torch.dtype, mode: FakeTensorMode) -> Network:
    """The run's network in training mode, on fake tensors; pretrained weights are not read."""
    with mode, _nothing_drawn():
        network = Network(settings.encoder, settings.detector, num_classes=num_classes).train()
        for parameter in network.parameters():  # as DeepSpeed: buffers stay; Module.to takes no fake tensors
            parameter.data = parameter.data.to(dtype)
    for stage in network.detector.stages:  # the first anchors are drawn, hence real; what follows need not be
        stage.register_forward_pre_hook(lambda _, inputs: tuple(_as_fake(mode, x) for x in inputs))
    return network


def _as_fake(mode: FakeTensorMode, x: Tensor) -> Tensor:
    return x if isinstance(x, FakeTensor) else mode.from_tensor(x)


def forward(settings: Settings, network: nn.Module, clips: Tensor) -> Tensor:
    """The loss of one micro step; clips: (B, N, C, L, H, W) uint8."""
    steps = torch.arange(ACTIONS + 1) * (settings.detector.num_steps / (ACTIONS + 1))
    segments = torch.stack([steps[:-1], steps[1:]], 1)  # (A, 2)
    truth = [segments] * len(clips), [torch.zeros(ACTIONS, dtype=torch.int64)] * len(clips)
    loss: Tensor = network(clips, *truth, generator=torch.Generator().manual_seed(0))[0]
    return loss


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


@contextmanager
def _watched(network: Network, tracker: LiveBytes, reducer: Reducer | None) -> Iterator[None]:
    """Inside, the encoder tells the tracker what it is at, and so does each gradient."""
    encoder, trainable = network.encoder, _trainable(network)
    size = sum(p.numel() for p in trainable)

    def note_gradient(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        tracker.include([parameter.grad], GRADIENTS)
        if reducer is not None:
            before, tracker.part = tracker.part, BUCKETS
            reducer.take(parameter, size)
            tracker.part = before

    hooks = [p.register_post_accumulate_grad_hook(note_gradient) for p in trainable]
    network.encoder = _Pieces(encoder, tracker)  # type: ignore[assignment]
    try:
        yield
    finally:
        network.encoder = encoder
        for hook in hooks:
            hook.remove()


def measure_step(
    settings: Settings,
    network: Network,
    clips: Tensor,
    *,
    reducer: Reducer | None = None,
    outer: AbstractContextManager[Any] | None = None,
) -> StepPeak:
    """The peak of a step of this network, whose tensors and `clips` may be fake or real.

    outer: another tracker to run along. The network's encoder is wrapped meanwhile; gradients stay behind.
    """
    tracker = LiveBytes(part=FEATURES)
    trainable = _trainable(network)
    groups = [sum(p.numel() for p in _trainable(part)) for part in (network.encoder, network.detector)]
    tracker.include([*network.parameters(), *network.buffers()], WEIGHTS)
    tracker.include([clips], FRAMES)
    tracker.include([p.grad for p in trainable if p.grad is not None], GRADIENTS)
    with _watched(network, tracker, reducer), outer or nullcontext(), tracker:
        loss = forward(settings, network, clips)
        in_forward = dict(tracker.parts_at_peak())
        tracker.reset_peak()
        loss.backward()
    return StepPeak(
        parts=dict(tracker.parts_at_peak()),
        forward=in_forward,
        groups=tuple(size for size in groups if size),
        tensors=tuple(p.numel() for p in trainable),
        accumulates=settings.optimizer.accumulation_steps > 1,
    )


def fake_step(
    settings: Settings,
    num_classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    reducer: Reducer | None = None,
    beta: float | None = None,
) -> StepPeak:
    """The peak of one micro step with these settings, without computing it.

    It is the last of its step: gradients of those before are there, unless the reducer took them.
    beta: of the reversible stages, the settings' last if None.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = _fake_network(settings, num_classes, dtype, mode)
    if beta is not None and rewired_stages(network):
        set_beta(network, beta)
    if reducer is not None and reducer.partitioned:
        for number, parameter in enumerate(network.parameters()):
            parameter.ds_id = number  # type: ignore[attr-defined]  # ZeRO-3's mark
    data = settings.data
    shape = (settings.optimizer.batch_size, data.num_clips, 3, data.clip_frames, data.crop, data.crop)
    with mode:
        clips = torch.empty(shape, dtype=torch.uint8)
        if reducer is None and settings.optimizer.accumulation_steps > 1:
            for parameter in _trainable(network):
                parameter.grad = torch.zeros_like(parameter)
    return measure_step(settings, network, clips, reducer=reducer)
