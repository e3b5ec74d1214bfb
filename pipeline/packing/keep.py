"""Says whether a video whose bytes are kept (--copy) is read in training as a player shows it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from ..container import open_video
from ..packets import decode_by_av, open_packets
from .probe import VideoMetadata


def why_not_kept(path: Path, metadata: VideoMetadata) -> str | None:
    """What training would read wrongly of this file; None: nothing."""
    if metadata.rotation:
        return f"to be shown turned by {metadata.rotation} degrees"
    if not metadata.steady:
        return f"frames at uneven times (about {float(metadata.fps):.2f} a second)"
    if metadata.begin:
        return f"its first frame is shown at {float(metadata.begin):.2f} s, not at 0 s"
    if len(metadata.formats) > 1:
        return f"its pictures change from {' to '.join(metadata.formats)}"
    if not _is_plain(metadata.pix_fmt):
        return f"its pixels are {metadata.pix_fmt}, and training reads YUV and grey ones"
    moved = [text for kind, text in metadata.remarks if kind in ("joined", "leading", "unstamped")]
    return moved[0] if moved else _why_not_read(path, metadata)


def _is_plain(pix_fmt: str) -> bool:
    """Whether a pixel format is grey or YUV in planes, without transparency and palette."""
    layout = av.VideoFormat(pix_fmt)
    in_planes = layout.is_planar or len(layout.components) == 1
    is_special = layout.is_rgb or layout.has_palette or layout.is_bit_stream
    return in_planes and not is_special and len(layout.components) in (1, 3)


def _why_not_read(path: Path, metadata: VideoMetadata) -> str | None:
    """What the training decoders would not find."""
    with open_video(path) as (container, stream):
        best = container.streams.best("video")
        if best is None or best.index != stream.index:
            return "several video tracks, and the default one is not the one that training reads"
    try:
        with open_packets(path.read_bytes(), metadata.num_frames) as video:
            if video.packet_indices is None:  # training counts frames from the start
                frames = decode_by_av(video, np.arange(metadata.num_frames))
                size = (metadata.height, metadata.width)
                if any(red.shape != size for red, _, _ in frames):
                    return "its pictures change their size"
    except ValueError as error:
        return str(error)
    return None
