"""Seconds and memory of a step by mode, and its arithmetic against the most this GPU was seen to do."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from tools.benchmarks.memory import MemoryOptions, build_encoder, make_clips, measure, train_step
from tools.gpu_checks.rows import CheckContext

MODES = (("plain", None), ("checkpoint", None), ("reversible", None), ("plain", 0.3), ("reversible", 0.3))


def options_of(context: CheckContext, dtype: str = "bfloat16") -> MemoryOptions:
    """R(2+1)D-34 on 32 clips of 16x112x112, 16 at once; in a rehearsal the tiny one on two."""
    if context.rehearsal:
        return MemoryOptions("r2plus1d_tiny", (3, 4, 32, 32), "float32", 2, (), 1, 1.0, "cpu")
    return MemoryOptions("r2plus1d_34", (3, 16, 112, 112), dtype, 32, (), 16, 1.0, "cuda")


def step_modes(context: CheckContext) -> str:
    """Forward and backward of one video: plain, checkpointed, reversible, and both of the two sampled."""
    options = options_of(context)
    texts = []
    for mode, ratio in MODES:
        row = measure(options, mode, ratio)
        name = mode if ratio is None else f"{mode}, sampled {ratio:g}"
        texts.append(f"{name} {row.seconds:.2f} s {row.peak_mib / 1024:.2f} GiB")
    clip = "x".join(map(str, options.clip))
    return f"{options.backbone}, {options.clips} clips of {clip}, {options.dtype}: {'; '.join(texts)}"


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a square matrix product, the best of six."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def achieved_rate(context: CheckContext) -> str:
    """Operations per second of a plain training step, and the share of a large matrix product's."""
    options = options_of(context)
    encoder, clips = build_encoder(options, "plain"), make_clips(options)
    with FlopCounterMode(display=False) as counter:
        train_step(encoder, clips, None, options.clips_per_forward)
    start = time.perf_counter()
    train_step(encoder, clips, None, options.clips_per_forward)
    if context.device == "cuda":
        torch.cuda.synchronize()
    rate = counter.get_total_flops() / (time.perf_counter() - start)
    size = 512 if context.rehearsal else 8192
    peak = matrix_rate(context.device, getattr(torch, options.dtype), size)
    share = f"{rate / 1e12:.1f} of {peak / 1e12:.0f} TFLOP/s ({rate / peak:.0%})"
    return f"{share}, {options.dtype}, {options.backbone}"
