"""Which packed videos a GPU decodes, and which the CPU: what training will do, before it is begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.gpu_formats import BLOCK, StreamFormat, packed_format, refusal_by_any_gpu, refused_videos
from pipeline.records import PackedVideo
from pipeline.text import counted, first_names

# A GPU's decoder of H.264 is kept for videos of one size, but not found again where whole blocks of 16 pixels
# are cut off at the right or below: 228x128 takes 68 ms for 40 frames, 224x128 takes 25 (H200, DALI 2.4).
REBUILT = frozenset({"h264"})


def decoding_of(videos: Sequence[PackedVideo]) -> dict[str, Any]:
    """How many packed videos training on a GPU decodes there and on the CPU, and why; {} for none.

    rebuilt: sizes, with their numbers of videos, for which the GPU builds a decoder for each chunk.
    """
    gpu, refusal = _gpu()
    reasons = refused_videos(videos, refusal)
    formats = [packed_format(video) for video in videos]
    slow = [f for f in formats if f.codec in REBUILT and (f.width % BLOCK or f.height % BLOCK)]
    sizes = [f"{format.codec} {format.width}x{format.height}" for format in slow if refusal(format) is None]
    return {
        "gpu": gpu,
        "on_gpu": len(videos) - reasons.total(),
        "on_cpu": reasons.total(),
        "reasons": dict(reasons),
        "rebuilt": {size: sizes.count(size) for size in sorted(set(sizes))},
    }


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that torch can use."""
    if not Path("/dev/nvidia0").exists():
        return False
    import torch  # takes seconds

    return torch.cuda.is_available()


def _gpu() -> tuple[str, Callable[[StreamFormat], str | None]]:
    """The GPU of this machine and what it refuses; without one, what no GPU decodes."""
    if not has_gpu():
        return "a GPU", refusal_by_any_gpu
    import torch

    from pipeline.decode import with_index
    from pipeline.gpu_decoder import gpu_decoder_of

    device = with_index(torch.device("cuda"))
    return torch.cuda.get_device_name(device), gpu_decoder_of(device).refusal


def decoding_text(decoding: Mapping[str, Any]) -> str:
    """The same for people."""
    if not decoding["on_cpu"] + decoding["on_gpu"]:
        return ""
    lines = [
        f"training on {decoding['gpu']} decodes {counted(decoding['on_gpu'], 'video')} there, "
        f"{decoding['on_cpu']} on the CPU"
    ]
    lines += [f"  {reason}: {counted(count, 'video')}" for reason, count in decoding["reasons"].items()]
    if decoding["rebuilt"]:
        sizes = [f"{size} ({counted(count, 'video')})" for size, count in decoding["rebuilt"].items()]
        lines.append(
            f"  sides that are no multiple of {BLOCK}: {first_names(sizes, quoted=False)}: a GPU decodes "
            "these 2 to 3 times as slowly; they work as they are, packed again they are faster"
        )
    return "\n".join(lines)
