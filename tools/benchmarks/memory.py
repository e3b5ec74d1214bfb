"""One row of the memory benchmark: a step of one encoder, and what autograd keeps and what is alive in it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.backbones import BACKBONES, build_backbone
from model.encode import sampled_encode
from model.reversible import Recurrence
from model.rewire import rewire
from model.sampling import num_kept, sample_clips
from pipeline.text import suggestion
from tools.benchmarks.trackers import LiveBytes, SavedBytes

MIB = 2**20
MODES = ("plain", "checkpoint", "reversible")


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark; `ratios` empty: all clips in one ordinary graph, without sampled encoding."""

    backbone: str
    clip: tuple[int, int, int, int]  # C, L, H, W
    dtype: str
    clips: int
    ratios: tuple[float, ...]
    clips_per_forward: int
    beta: float
    device: str


class Encoder(nn.Module):
    """A backbone and its pooling: (n, C, L, H, W) uint8 -> (n, D, t)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        """Pixels to -1..1 in the dtype of the parameters, then features."""
        dtype = next(self.parameters()).dtype
        return self.backbone.pool(self.backbone(clips.to(dtype) / 127.5 - 1))


def build_encoder(settings: Settings, mode: str) -> Encoder:
    """The encoder in one of MODES, in training mode, with gradients allocated."""
    torch.manual_seed(0)
    backbone = build_backbone(settings.backbone)
    if mode != "plain":
        rewire(backbone, beta=0.0 if mode == "checkpoint" else settings.beta)
    encoder = Encoder(backbone.to(settings.device, getattr(torch, settings.dtype)))
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return encoder.train()


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
    tensors = [clips, *encoder.parameters(), *encoder.buffers(), *(p.grad for p in encoder.parameters())]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _peak_and_seconds(settings: Settings, encoder: Encoder, clips: Tensor, ratio: float | None):
    """On a GPU from one step; on a CPU the caller has the peak, and this one is 0."""
    cuda = clips.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    train_step(encoder, clips, ratio, settings.clips_per_forward)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return (torch.cuda.max_memory_allocated() - before if cuda else 0), seconds


def measure(settings: Settings, mode: str, ratio: float | None) -> dict:
    """One row: mode, ratio, saved_mib, peak_mib, seconds."""
    encoder = build_encoder(settings, mode)
    generator = torch.Generator().manual_seed(1)
    shape = (1, settings.clips, *settings.clip)
    clips = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(settings.device)
    known = _storages(encoder, clips)
    saved, live = SavedBytes(known), LiveBytes(known)
    after_forward: list[int] = []
    hook = encoder.register_forward_hook(lambda *_: after_forward.append(saved.now))
    with saved, live if clips.device.type == "cpu" else nullcontext():
        train_step(encoder, clips, ratio, settings.clips_per_forward)
    hook.remove()
    peak, seconds = _peak_and_seconds(settings, encoder, clips, ratio)
    return {
        "mode": mode,
        "ratio": ratio,
        "saved_mib": round(max(after_forward) / MIB, 2),
        "peak_mib": round(max(peak, live.peak) / MIB, 2),
        "seconds": round(seconds, 3),
    }


def check_backbone(name: str) -> None:
    """ValueError if no backbone has this name."""
    if name not in BACKBONES:
        raise ValueError(f"--backbone: got {name!r}, which is no backbone; {suggestion(name, BACKBONES)}")


def check(settings: Settings) -> None:
    """ValueError for a backbone, beta or ratio that cannot be, before anything is measured."""
    check_backbone(settings.backbone)
    Recurrence(settings.beta)
    for ratio in settings.ratios:
        num_kept(settings.clips, ratio)
