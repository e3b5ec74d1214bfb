"""Reads in packets of H.264 and HEVC whether a decoder can begin there as at the start of the video."""

from __future__ import annotations

import re
from collections.abc import Iterator

START_CODE = re.compile(rb"\x00\x00\x01")
# codec -> (types of units with pixels, those of pictures on which nothing before leans: IDR). ITU-T H.264,
# table 7-1; H.265, table 7-1. H.264's recovery points and HEVC's CRA pictures are key frames as well.
PICTURES = {"h264": (range(1, 6), {5}), "hevc": (range(32), {19, 20})}


def begins_anew(packet: bytes, codec: str, extradata: bytes | None) -> bool:
    """Whether the picture in a key frame's packet lets the decoder forget all before it.

    codec: FFmpeg's name; of all but H.264 and HEVC every key frame does. extradata: the stream's own header.
    """
    if codec not in PICTURES:
        return True
    pictures, anew = PICTURES[codec]
    for first_byte in _unit_headers(packet, codec, extradata or b""):
        kind = first_byte & 0x1F if codec == "h264" else first_byte >> 1 & 0x3F
        if kind in pictures:
            return kind in anew
    return False


def _unit_headers(packet: bytes, codec: str, extradata: bytes) -> Iterator[int]:
    """The first byte of each unit; units follow a start code, or their length (avcC, hvcC)."""
    if extradata[:1] != b"\x01":
        for match in START_CODE.finditer(packet):
            yield from packet[match.end() : match.end() + 1]
        return
    length_bytes = (extradata[4 if codec == "h264" else 21] & 3) + 1
    at = 0
    while at + length_bytes < len(packet):
        yield packet[at + length_bytes]
        at += length_bytes + int.from_bytes(packet[at : at + length_bytes], "big")
