"""Which videos the decoder of an NVIDIA GPU (NVDEC) decodes right: fixed rules, and what its driver states.

A try alone is not enough. Measured on an H200 with DALI 2.4: 4:4:4 and 4:2:2 video, odd sides, and a second
video stream give wrong pixels without an error. And read in DALI's source: pictures are numbered when they
are decoded, so those that come in two fields, or are only shown again, would be mixed up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .packets import Packets
from .records import PackedVideo
from .text import counted, first_names

# codec -> (NVIDIA's number of it, least width, least height). DALI hands no other codec to the GPU but MJPEG,
# which its operator then refuses. The least sizes are those of every chip so far (NVDEC's application note).
CODECS = {
    "mpeg4": (2, 48, 16),
    "h264": (4, 48, 16),
    "hevc": (8, 144, 144),
    "vp8": (9, 48, 16),
    "vp9": (10, 128, 128),
    "av1": (11, 128, 128),
}
OTHER_NAMES = {"libdav1d": "av1", "libaom-av1": "av1"}  # FFmpeg's decoders of a codec have names of their own
BLOCK = 16  # pixels of a side; what codes whole blocks of it rounds small sides up
WHOLE_BLOCKS = frozenset({"mpeg4", "h264", "vp8"})
PIX_FMT = re.compile(r"yuvj?420p(?:(\d+)(?:le|be))?")
PACKED_PIX_FMT = "yuv420p"  # what make-shards encodes
FIELDS = frozenset({"h264", "hevc", "mpeg4"})  # codecs whose pictures may be two interlaced fields
INTERLACED = {2, 3, 4, 5}  # FFmpeg's field orders
SHOW_EXISTING_FRAME = 0b00001000  # in the first byte of a VP9 packet of profiles 0 to 2


class StreamFormat(NamedTuple):
    """What decides whether a GPU decodes a video. codec, pix_fmt: FFmpeg's names; sides in pixels."""

    codec: str
    width: int
    height: int
    pix_fmt: str

    def __str__(self) -> str:
        return f"{self.codec} {self.width}x{self.height} {self.pix_fmt}"

    @property
    def bits(self) -> int | None:
        """Bits of a sample; None for what is not 4:2:0 or has an alpha channel."""
        match = PIX_FMT.fullmatch(self.pix_fmt)
        return int(match[1] or 8) if match else None

    def at_least(self, width: int, height: int) -> bool:
        """Whether the sides, rounded up to whole blocks where the codec does so, reach these."""
        block = BLOCK if self.codec in WHOLE_BLOCKS else 1
        return -(-self.width // block) * block >= width and -(-self.height // block) * block >= height


class DriverLimits(NamedTuple):
    """What the driver states of one codec and bit depth; sides in pixels, blocks of 16x16 pixels."""

    is_supported: bool
    num_decoders: int
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    max_blocks: int


def format_of(video: Packets, codec: str) -> StreamFormat:
    """The format of an open video. codec: its FFmpeg name."""
    context = video.stream.codec_context
    pix_fmt = context.pix_fmt or "unknown pixels"
    return StreamFormat(OTHER_NAMES.get(codec, codec), context.width, context.height, pix_fmt)


def packed_format(video: PackedVideo) -> StreamFormat:
    """The format of a packed video; data sets of former versions do not state pix_fmt: taken as 4:2:0."""
    codec = OTHER_NAMES.get(video.codec, video.codec)
    return StreamFormat(codec, video.width, video.height, video.pix_fmt or PACKED_PIX_FMT)


def refusal_by_any_gpu(format: StreamFormat) -> str | None:
    """Why no GPU decodes a format right, whatever the chip; None: one may."""
    if format.codec not in CODECS:
        return f"no GPU decodes {format.codec} here"
    if format.bits is None:
        return f"GPUs decode {format.pix_fmt} wrongly, want 4:2:0"
    if format.width % 2 or format.height % 2:
        return "GPUs decode odd sides wrongly"
    _, width, height = CODECS[format.codec]
    if not format.at_least(width, height):
        return f"GPUs decode {format.codec} from {width}x{height} pixels on"
    return None


def refusal_by_driver(format: StreamFormat, limits: DriverLimits) -> str | None:
    """Why this GPU does not decode a format that others may; None: it should. limits: of codec and bits."""
    if not limits.is_supported:
        return f"this GPU does not decode {format.codec} of {format.bits} bit"
    if not format.at_least(limits.min_width, limits.min_height):
        return f"this GPU decodes {format.codec} from {limits.min_width}x{limits.min_height} pixels on"
    too_wide = format.width > limits.max_width or format.height > limits.max_height
    if too_wide or format.width * format.height // BLOCK**2 > limits.max_blocks:
        return f"this GPU decodes {format.codec} up to {limits.max_width}x{limits.max_height} pixels"
    return None


def refusal_of_video(video: Packets, codec: str) -> str | None:
    """Why a video cannot go to a GPU's decoder although others of its format may; None: it can."""
    if video.packet_indices is None:
        return "its packets are not one per frame, each with a time stamp"
    if codec in FIELDS and is_interlaced(video):
        return "its pictures are interlaced"
    if codec == "vp9" and any(memoryview(packet)[0] & SHOW_EXISTING_FRAME for packet in video.packets):
        return "some of its packets only show an earlier picture again"
    return None


def is_interlaced(video: Packets) -> bool:
    """Whether the pictures of a video are made of two fields, by its header or else by its first picture."""
    context = video.stream.codec_context
    if order := getattr(context, "field_order", 0):  # PyAV has it from 18 on; 0: the header does not state it
        return order in INTERLACED
    if not context.is_open:
        context.thread_count = 1  # or as many packets as there are threads go in before a picture comes out
    pictures = (frame for packet in [*video.packets, None] for frame in context.decode(packet))
    first = next(pictures, None)
    context.flush_buffers()
    return first is not None and first.interlaced_frame


def refused_videos(
    videos: Iterable[PackedVideo], refusal: Callable[[StreamFormat], str | None]
) -> Counter[str]:
    """How many videos a GPU does not decode, by reason, the most frequent first."""
    formats = Counter(packed_format(video) for video in videos)
    counts: Counter[str] = Counter()
    for format, count in formats.items():
        reason = refusal(format)
        if reason is not None:
            counts[reason] += count
    return Counter(dict(counts.most_common()))


def refusal_text(counts: Mapping[str, int]) -> str:
    """The reasons and how many videos each has, on one line."""
    reasons = [f"{reason} ({counted(count, 'video')})" for reason, count in counts.items()]
    return first_names(reasons, quoted=False)
