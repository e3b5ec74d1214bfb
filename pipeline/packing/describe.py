"""Describes a video that VideoEncoder wrote from its packets, without decoding it again, and checks them.

What is checked of every video: that the file reads, each frame has its packet at its own time, key frames
stand where the groups begin, and the first frame decodes to the size and format of what went in. That every
frame decodes is checked by `make-shards --verify`, and by training when it reads them.
"""

from __future__ import annotations

from fractions import Fraction

import av

from ..container import open_video
from ..limits import decoding_reason
from .probe import VideoMetadata

PIX_FMT = "yuv420p"
STRICT = {"err_detect": "explode"}  # FFmpeg's: an error is one, nothing is concealed


def describe(
    data: bytes, *, fps: Fraction, num_frames: int, size: tuple[int, int], codec: str, gop: int
) -> VideoMetadata:
    """What `probe` says of `data`, an mp4 of VideoEncoder with these properties; size: width and height.

    Raises ValueError where the file is another one.
    """
    with open_video(data, options=STRICT) as (container, stream):
        width, height = size
        wanted = f"{width}x{height} {PIX_FMT}, {codec}"
        packets = [packet for packet in container.demux(stream) if packet.size]
        if len(packets) != num_frames:
            raise ValueError(f"encoded {num_frames} frames, {len(packets)} came back")
        context = stream.codec_context
        first = _first_frame(context, packets[0])
        found = f"{first.width}x{first.height} {first.format.name}, {context.codec.canonical_name}"
        if found != wanted:
            raise ValueError(f"encoded {wanted}; {found} came back")
        tick = (stream.time_base or Fraction(0)) * fps  # in frames
        if any(packet.pts is None or packet.pts * tick != number for number, packet in enumerate(packets)):
            raise ValueError(f"the encoded frames are not {float(fps):g} a second")
        if any(packet.is_keyframe != (number % gop == 0) for number, packet in enumerate(packets)):
            raise ValueError(f"the encoded key frames are not every {gop} frames")
    return VideoMetadata(
        duration=num_frames / fps,
        fps=fps,
        num_frames=num_frames,
        width=width,
        height=height,
        rotation=0,
        aspect=Fraction(1),
        codec=codec,
        pix_fmt=PIX_FMT,
        steady=True,
        transfer=None,
        formats=(f"{width}x{height} {PIX_FMT}",),
    )


def _first_frame(context: av.VideoCodecContext, packet: av.Packet[av.VideoStream]) -> av.VideoFrame:
    context.thread_count = 1
    context.options |= STRICT
    try:
        return [*context.decode(packet), *context.decode(None)][0]
    except (av.FFmpegError, IndexError) as error:
        reason = decoding_reason(error) if isinstance(error, av.FFmpegError) else "no frame comes out"
        raise ValueError(f"the first encoded frame does not decode: {reason}") from None
