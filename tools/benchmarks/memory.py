"""One row of the memory benchmark: a step of one encoder, and what autograd keeps and what is alive in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.backbones.backbone import Backbone
from model.encode import sampled_encode
from model.recurrence import Recurrence
from model.rewire_backbone import rewire_backbone
from model.sampling import num_kept, sample_clips
from tools.benchmarks.common import check_backbone
from tools.benchmarks.trackers import LiveBytes, SavedBytes

MIB = 2**20
MODES = ("plain", "checkpoint", "reversible")


@dataclass(frozen=True)
class MemoryOptions:
    """One run of the benchmark; `ratios` empty: all clips in one ordinary graph, without sampled encoding."""

    backbone: str
    clip: tuple[int, int, int, int]  # C, L, H, W
    dtype: str
    clips: int
    ratios: tuple[float, ...]
    clips_per_forward: int
    beta: float
    device: str  # cpu or cuda

    def check(self) -> None:
        """ValueError for a backbone, beta or ratio that cannot be, before anything is measured."""
        check_backbone(self.backbone)
        Recurrence(self.beta)
        for ratio in self.ratios:
            num_kept(self.clips, ratio)


@dataclass(frozen=True)
class MemoryRow:
    """What was measured in one of MODES; ratio: of the clips with a gradient, None without sampling."""

    mode: str
    ratio: float | None
    saved_mib: float
    peak_mib: float
    seconds: float


class Encoder(nn.Module):
    """A backbone and its pooling: (n, C, L, H, W) uint8 -> (n, D, t)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        """Pixels to -1..1 in the dtype of the parameters, then features."""
        dtype = next(self.parameters()).dtype
        return self.backbone.pool(self.backbone(clips.to(dtype) / 127.5 - 1))


def build_encoder(options: MemoryOptions, mode: str) -> Encoder:
    """The encoder in one of MODES, in training mode, with gradients allocated."""
    torch.manual_seed(0)
    backbone = build_backbone(options.backbone)
    if mode != "plain":
        rewire_backbone(backbone, beta=0.0 if mode == "checkpoint" else options.beta)
    encoder = Encoder(backbone.to(options.device, getattr(torch, options.dtype)))
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return encoder.train()


def make_clips(options: MemoryOptions) -> Tensor:
    """The clips of one video, random: (1, N, C, L, H, W) uint8."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, options.clips, *options.clip)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(options.device)


def train_step(encoder: Encoder, clips: Tensor, ratio: float | None, clips_per_forward: int) -> None:
    """Forward and backward of one video; clips: (1, N, C, L, H, W) uint8."""
    if ratio is None:
        features = encoder(clips[0])
    else:
        generator = torch.Generator().manual_seed(0)
        kept = sample_clips(1, clips.shape[1], ratio, strategy="uniform", generator=generator)
        features = sampled_encode(encoder, clips, kept, clips_per_forward=clips_per_forward)
    features.float().square().mean().backward()


def _storages(encoder: Encoder, clips: Tensor) -> set[int]:
    """Data pointers of what is there before a step: clips, parameters, buffers, gradients."""
    gradients = (p.grad for p in encoder.parameters() if p.grad is not None)
    tensors = [clips, *encoder.parameters(), *encoder.buffers(), *gradients]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _seconds(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(options: MemoryOptions, mode: str, ratio: float | None) -> MemoryRow:
    """One row: a step that is tracked, then one that is timed, on a GPU with the allocator's peak."""
    encoder, clips = build_encoder(options, mode), make_clips(options)
    step = partial(train_step, encoder, clips, ratio, options.clips_per_forward)
    existing = _storages(encoder, clips)
    saved, live = SavedBytes(existing), LiveBytes(existing)
    after_forward: list[int] = []
    hook = encoder.register_forward_hook(lambda *_: after_forward.append(saved.now))
    on_gpu = options.device == "cuda"
    with saved, nullcontext() if on_gpu else live:
        step()
    hook.remove()
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step, options.device)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else live.peak
    return MemoryRow(
        mode=mode,
        ratio=ratio,
        saved_mib=round(max(after_forward) / MIB, 2),
        peak_mib=round(peak / MIB, 2),
        seconds=round(seconds, 3),
    )
