"""One training step of a run's network on fake tensors: the most bytes alive at one time, and what for.

Parameters and clips are fake (torch.FakeTensorMode), so everything computed from them is, and costs neither
memory nor time; clip indices, proposals and ground truth are real, because code reads them. The step is the
real one: Network.forward with sampled encoding, and its backward pass, in the ZeRO stage's way of keeping
gradients. A chunk of clips (those of one forward of the encoder) allocates what the chunk before allocated,
so the first ones stand for the rest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from model.backbones.libraries import is_foreign_name
from model.detector import ProposalDetector
from model.late_choice import ChosenClips, LateChoice
from model.network import Network
from model.rewire import rewired_stages, set_beta
from model.schedule import largest_ratio
from model.slices import Slices
from tools.benchmarks.trackers import LiveBytes
from train.parameter_groups import group_sizes, parameter_groups
from train.settings import Settings

WEIGHTS, GRADIENTS, FRAMES, BUCKETS = "weights", "gradients", "frames", "gradient buckets"
BOUNDARIES, WORKING, FEATURES = "stage boundaries", "working set", "features and detector"
ACTIONS = 8  # actions per video in the estimate: they count for next to nothing
# Chunks of the largest size that run, without and with a graph: with one, the second chunk meets the
# gradients of the first.
CHUNKS_RUN = {False: 1, True: 2}
SLICES_RUN = 3


@dataclass(frozen=True)
class StepPeak:
    """Bytes by part when most were alive, and what DeepSpeed's own memory is computed from."""

    parts: dict[str, int]  # in the backward pass
    forward: dict[str, int]  # in the forward pass
    groups: tuple[int, ...]  # trainable elements (not bytes) of each group of the optimizer
    tensors: tuple[int, ...]  # elements of each trainable parameter
    accumulates: bool = False  # several micro steps make a step

    @property
    def total(self) -> int:
        """Bytes of all parts, in the pass that needs more."""
        return max(sum(self.parts.values()), sum(self.forward.values()))

    @property
    def trainable(self) -> int:
        """Trainable elements."""
        return sum(self.groups)

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest trainable parameter."""
        return max(self.tensors)


@dataclass
class Reducer:
    """What DeepSpeed does with a gradient as soon as it is ready: it moves into a bucket allocated before.

    A full bucket is reduced at once: `copies` of it are allocated on the way, and `kept_share` of all
    gradients the first time, to stay. partitioned: parameters are, so keep gradients as under ZeRO-3.
    """

    bucket_size: int  # elements
    copies: int = 0
    kept_share: float = 0.0
    partitioned: bool = False
    filled: int = 0  # elements in the bucket
    kept: list[Tensor] = field(default_factory=list)

    def take(self, parameter: Tensor, trainable: int) -> None:
        """Move the gradient of this parameter, unless there is more to come (model/encode.py says so)."""
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


class _FirstChunks(nn.Module):
    """Stands in for the encoder: runs the first chunks of clips only, and sets the tracker's part."""

    def __init__(self, encoder: nn.Module, tracker: LiveBytes, chunks_run: dict[bool, int]) -> None:
        super().__init__()
        self.encoder, self.tracker, self.chunks_run = encoder, tracker, chunks_run
        # by whether there is a graph: clips of the largest chunk so far, and how often one so large has run
        self.largest: Counter[bool] = Counter()
        self.runs: Counter[bool] = Counter()
        self.one_clip: Tensor | None = None  # (1, D, t), features as the encoder gave them

    def forward(self, clips: Tensor) -> Tensor:
        """clips: (n, C, L, H, W) uint8. Returns (n, D, t)."""
        self.tracker.include([clips], FRAMES)  # a view of the batch, or a copy of some of its clips
        graph = torch.is_grad_enabled()
        may_allocate_more = self._may_allocate_more(len(clips), graph)
        if self.one_clip is not None and not may_allocate_more:
            return self.one_clip.new_empty(len(clips), *self.one_clip.shape[1:], requires_grad=graph)
        with_graph = graph and any(p.requires_grad for p in self.encoder.parameters())
        if with_graph:  # what an earlier chunk left behind are its gradients
            self.tracker.reassign(WORKING, GRADIENTS)
        self.tracker.part = WORKING
        features: Tensor = self.encoder(clips)
        if with_graph:  # its backward goes on with the working set
            self.tracker.reassign(WORKING, BOUNDARIES)
        else:
            self.tracker.part = FEATURES
        self.one_clip = features.detach()[:1].clone() if self.one_clip is None else self.one_clip
        return features

    def _may_allocate_more(self, num_clips: int, graph: bool) -> bool:
        """Whether a chunk may allocate what none did before it."""
        if num_clips > self.largest[graph]:
            self.largest[graph], self.runs[graph] = num_clips, 0
        self.runs[graph] += num_clips == self.largest[graph]
        return num_clips == self.largest[graph] and self.runs[graph] <= self.chunks_run[graph]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of a module or class is another one."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _without_trunc_normal() -> AbstractContextManager[None]:
    """Inside, nn.init.trunc_normal_ does nothing: it draws until the values fit, and fake ones have none."""
    return _replaced(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)


def _evenly_spaced(choice: LateChoice, values: Tensor) -> ChosenClips:
    """As many clips as the choice keeps of each video, none beside another: they have to be copied."""
    num_videos, num_clips = values.shape[:2]
    count = min(choice.count, num_clips)
    return ChosenClips((torch.arange(count) * num_clips // count).expand(num_videos, -1))


def _without_choosing() -> AbstractContextManager[None]:
    """Inside, clips that features or gradients would decide are evenly spaced: fake ones have no values."""
    return _replaced(LateChoice, "choose", _evenly_spaced)


def _few_slices() -> AbstractContextManager[None]:
    """Inside, of the slices of a branch the first, second and last run: the others allocate what they do."""
    all_ranges = Slices.ranges

    def few(slices: Slices) -> Iterator[tuple[int, int]]:
        ranges = list(all_ranges(slices))
        yield from ranges if len(ranges) <= SLICES_RUN else [*ranges[: SLICES_RUN - 1], ranges[-1]]

    return _replaced(Slices, "ranges", few)


def _fake_network(settings: Settings, num_classes: int, dtype: torch.dtype, mode: FakeTensorMode) -> Network:
    """The run's network in training mode, on fake tensors; pretrained weights are not read."""
    of_library = is_foreign_name(settings.encoder.backbone)
    with nullcontext() if of_library else mode, _without_trunc_normal():
        network = Network(settings.encoder, settings.detector, num_classes=num_classes).train()
    if of_library:  # it has to run for its blocks to be proven
        _make_fake(network, mode)
    with mode:
        encoder, detector = settings.encoder, settings.detector
        network.clip_ratio = largest_ratio(encoder.clip_ratio, encoder.clip_ratio_schedule)
        network.detector.proposal_ratio = largest_ratio(
            detector.proposal_ratio, detector.proposal_ratio_schedule
        )
        for parameter in network.parameters():  # as DeepSpeed: buffers stay; Module.to takes no fake tensors
            parameter.data = parameter.data.to(dtype)
    if isinstance(network.detector, ProposalDetector):
        for stage in network.detector.stages:  # the first anchors are drawn, hence real; the rest need not be
            stage.register_forward_pre_hook(lambda _, inputs: tuple(_as_fake(mode, x) for x in inputs))
    return network


def _make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of all parameters and buffers; a shared one stays shared."""
    fakes: dict[int, Tensor] = {}
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = mode.from_tensor(tensor.data)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = fakes[id(tensor)]  # type: ignore[assignment]


def _as_fake(mode: FakeTensorMode, x: Tensor) -> Tensor:
    return x if isinstance(x, FakeTensor) else mode.from_tensor(x)


def forward(settings: Settings, network: nn.Module, clips: Tensor) -> Tensor:
    """The loss of one micro step; clips: (B, N, C, L, H, W) uint8."""
    ends = torch.arange(ACTIONS + 1) * (settings.detector.num_steps / (ACTIONS + 1))
    gt_segments = [torch.stack([ends[:-1], ends[1:]], 1)] * len(clips)  # (A, 2) each
    gt_labels = [torch.zeros(ACTIONS, dtype=torch.int64)] * len(clips)
    generator = torch.Generator().manual_seed(0)
    loss: Tensor = network(clips, gt_segments, gt_labels, generator=generator)[0]
    return loss


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


@contextmanager
def _tracked(network: Network, tracker: LiveBytes, reducer: Reducer | None) -> Iterator[None]:
    """Inside, the encoder sets the tracker's part, and each gradient counts as one once it is there."""
    encoder, trainable = network.encoder, _trainable(network)
    size = sum(p.numel() for p in trainable)

    def count_gradient(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        tracker.include([parameter.grad], GRADIENTS)
        if reducer is not None:
            before, tracker.part = tracker.part, BUCKETS
            reducer.take(parameter, size)
            tracker.part = before

    hooks = [
        p.register_post_accumulate_grad_hook(count_gradient)  # type: ignore[no-untyped-call]
        for p in trainable
    ]
    # Graphs that are kept are there all at once: none stands for another.
    chunks_run = {**CHUNKS_RUN, True: sys.maxsize} if network.settings.keep_graphs else CHUNKS_RUN
    network.encoder = _FirstChunks(encoder, tracker, chunks_run)  # type: ignore[assignment]
    try:
        yield
    finally:
        network.encoder = encoder
        for hook in hooks:
            hook.remove()


def measure_step(
    settings: Settings, network: Network, clips: Tensor, *, reducer: Reducer | None = None
) -> StepPeak:
    """The peak of a step of this network, whose tensors and `clips` may be fake or real.

    The network's encoder is wrapped meanwhile; gradients stay behind.
    """
    tracker = LiveBytes(part=FEATURES)
    trainable = _trainable(network)
    groups = group_sizes(parameter_groups(network, settings.optimizer))
    tracker.include([*network.parameters(), *network.buffers()], WEIGHTS)
    tracker.include([clips], FRAMES)
    tracker.include([p.grad for p in trainable if p.grad is not None], GRADIENTS)
    with _tracked(network, tracker, reducer), tracker:
        loss = forward(settings, network, clips)
        in_forward = dict(tracker.parts_at_peak())
        tracker.reset_peak()
        loss.backward()  # type: ignore[no-untyped-call]
    return StepPeak(
        parts=dict(tracker.parts_at_peak()),
        forward=in_forward,
        groups=tuple(groups.values()),
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
    beta: of the reversible stages; None: the one at the end of the run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = _fake_network(settings, num_classes, dtype, mode)
    if beta is not None and rewired_stages(network):
        set_beta(network, beta)
    if reducer is not None and reducer.partitioned:
        for number, parameter in enumerate(network.parameters()):
            parameter.ds_id = number  # type: ignore[attr-defined]  # as ZeRO-3 numbers what it partitions
    data = settings.data
    shape = (settings.optimizer.batch_size, data.num_clips, 3, data.clip_frames, data.crop, data.crop)
    with mode:
        clips = torch.empty(shape, dtype=torch.uint8)
        if reducer is None and settings.optimizer.accumulation_steps > 1:
            for parameter in _trainable(network):
                parameter.grad = torch.zeros_like(parameter)
    with _without_choosing(), _few_slices():
        return measure_step(settings, network, clips, reducer=reducer)
