"""Bounds on what a video may cost, checked before memory is taken: a file or an index can claim anything."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pydantic import Field

from settings_group import SettingsGroup

if TYPE_CHECKING:
    import av  # takes a while, and reading a description needs none of it


class Limits(SettingsGroup):
    """What a video may cost at most; one that costs more is refused by name."""

    pixels: int = Field(36_000_000, ge=1)
    """Pixels of a frame at source size: the default is 8K. Larger takes larger pictures; a frame is 1.5 to 6
    bytes a pixel, and some tens of frames are held at once."""

    frames: int = Field(900_000, ge=1)
    """Frames of a video: the default is 10 hours at 25 a second. Larger takes longer recordings; packing one
    takes minutes for each hour."""

    bytes: int = Field(4 * 2**30, ge=1)
    """Encoded bytes of a video that are held in memory at once: those of a packed video. Larger takes longer
    videos that were packed with --copy, and as much memory in each process."""


_current = Limits()


def set_limits(limits: Limits) -> None:
    """Make these the limits of this process, its threads, and the processes that it forks from now on."""
    global _current
    _current = limits


def limits() -> Limits:
    """The limits that hold now."""
    return _current


def _refuse(found: str, most: int, name: str) -> ValueError:
    return ValueError(
        f"{found}, want at most {most}; if it is no mistake, raise the limit (make-shards --max-{name}, "
        f"elsewhere --set data.limits.{name}=...)"
    )


def check_stream(stream: av.VideoStream) -> None:
    """ValueError if what the head of a video stream states is beyond the limits; or for an unknown codec."""
    if getattr(stream, "codec_context", None) is None:  # PyAV's stub knows no such stream
        raise ValueError("FFmpeg has no decoder for its video stream")
    pixels = stream.width * stream.height
    if pixels > _current.pixels:
        raise _refuse(f"{stream.width}x{stream.height} are {pixels} pixels", _current.pixels, "pixels")
    if stream.frames > _current.frames:
        raise _refuse(f"it has {stream.frames} frames", _current.frames, "frames")


def check_count(count: int) -> None:
    """ValueError if a video may not have so many frames."""
    if count > _current.frames:
        raise _refuse(f"it has over {_current.frames} frames", _current.frames, "frames")


def decoding_reason(error: av.FFmpegError) -> str:
    """What FFmpeg says of a frame, and that it may be the limit of pixels, of which it says nothing."""
    text = error.strerror or "no reason given"
    if error.errno != errno.EINVAL:
        return text
    return f"{text}, perhaps for a picture of over {_current.pixels} pixels (make-shards --max-pixels)"


def check_bytes(size: int) -> None:
    """ValueError if so many encoded bytes may not be held at once."""
    if size > _current.bytes:
        raise _refuse(f"its encoded video has {size} bytes", _current.bytes, "bytes")
