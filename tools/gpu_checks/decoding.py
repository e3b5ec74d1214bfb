"""What the GPU's decoder makes of each codec at five sizes: pixels against the CPU decoder, and its speed."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.clip_decoder import MAX_OFF, MEAN_OFF
from pipeline.decode import decode_frames
from tools.gpu_checks.rows import CheckContext, SkipRow, require
from tools.machine.decoders import CLIPS, encode_clip, gpu_refusal

# Below and above the least sizes of the chips, what make-shards wrote for 16:9 videos, usual, and large.
SIZES = ((48, 48), (144, 144), (228, 128), (320, 256), (1920, 1080))
TIMED, TIMED_FRAMES, ROUNDS = (320, 256), 240, 3
FRAMES = 24
LEAST_SIDES = {"hevc": 64}  # x265 writes past its memory at 48x48, and no GPU decodes HEVC so small
CHUNK_MIB = 200.0
DECODERS = {"av1": "libdav1d"}  # FFmpeg's decoder where its name is not that of the codec


@cache
def clip(codec: str, size: tuple[int, int], num_frames: int) -> bytes:
    """An encoded clip. Raises SkipRow where PyAV has no encoder for it."""
    data = encode_clip(codec, size=size, num_frames=num_frames)
    if data is None:
        raise SkipRow(f"PyAV has no {CLIPS[codec][0]} here")
    return data


def decode(codec: str, data: bytes, num_frames: int, device: str) -> NDArray[np.uint8]:
    """All frames (F, H, W, 3) by the decoder of that device alone."""
    chunks = decode_frames(
        data,
        np.arange(num_frames),
        codec=DECODERS.get(codec, codec),
        num_frames=num_frames,
        device=device,
        decode_chunk_mib=CHUNK_MIB,
    )
    return np.concatenate([chunk.cpu().numpy().copy() for chunk in chunks])


def refusal_of(codec: str, data: bytes, num_frames: int, device: str) -> str | None:
    """Why a clip is decoded on the CPU; in a rehearsal no GPU is there to refuse."""
    return None if device == "cpu" else gpu_refusal(data, codec, num_frames=num_frames)


def frames_per_second(codec: str, device: str) -> float:
    """Frames a second of one thread, the best of some rounds."""
    data = clip(codec, TIMED, TIMED_FRAMES)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        decode(codec, data, TIMED_FRAMES, device)
        seconds.append(time.perf_counter() - start)
    return TIMED_FRAMES / min(seconds)


def decode_codec(context: CheckContext, *, codec: str) -> str:
    """A codec at all sizes: how far the pixels are off, or why such videos go to the CPU; frames a second."""
    parts, holds = [], True
    for size in SIZES[:2] if context.rehearsal else SIZES:
        name = f"{size[0]}x{size[1]}"
        if min(size) < LEAST_SIDES.get(codec, 0):
            parts.append(f"{name} not tried (its encoder cannot)")
            continue
        data = clip(codec, size, FRAMES)
        reason = refusal_of(codec, data, FRAMES, context.device)
        if reason is not None:
            parts.append(f"{name} CPU ({reason})")
            continue
        found, expected = (decode(codec, data, FRAMES, device) for device in (context.device, "cpu"))
        off = abs(found.astype(int) - expected)
        holds &= off.max() <= MAX_OFF and off.mean(axis=(1, 2, 3)).max() <= MEAN_OFF
        parts.append(f"{name} off by {off.max()}, mean {off.mean():.2f}")
    timed = None if context.rehearsal else clip(codec, TIMED, TIMED_FRAMES)
    if timed is not None and refusal_of(codec, timed, TIMED_FRAMES, context.device) is None:
        rates = [f"{frames_per_second(codec, device):,.0f}" for device in (context.device, "cpu")]
        parts.append(f"{rates[0]} frames/s, CPU {rates[1]}")
    return require(bool(holds), "; ".join(parts))
