"""A packed video is described from its packets as decoding it says, and another one is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from packing_cases import write_video

from pipeline.packing import transcode as transcode_module
from pipeline.packing.describe import describe
from pipeline.packing.encoder import encode_video
from pipeline.packing.probe import FrameReader, Unreadable, probe
from pipeline.packing.transcode import EncodingSpec, transcode

MADE = {"fps": Fraction(15), "num_frames": 40, "size": (48, 32), "codec": "vp9", "gop": 8}


def made(num_frames: int = 40, **options) -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 32, 48, 3), np.uint8)
    return encode_video(iter(frames), **{"fps": Fraction(15), "codec": "vp9", "gop": 8, **options})


@pytest.mark.parametrize("codec", ["vp9", "h264"])
@pytest.mark.parametrize("fps", [Fraction(15), Fraction(30000, 1001), Fraction(1, 3), Fraction(997, 59)])
@pytest.mark.parametrize("num_frames", [1, 2, 40])
def test_packets_say_what_decoding_says(codec, fps, num_frames):
    data = made(num_frames, codec=codec, fps=fps)
    changed = {"fps": fps, "codec": codec, "num_frames": num_frames}
    assert describe(data, **{**MADE, **changed}) == probe(data)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"num_frames": 41}, "encoded 41 frames, 40 came back"),
        ({"fps": Fraction(16)}, "the encoded frames are not 16 a second"),
        ({"gop": 16}, "the encoded key frames are not every 16 frames"),
        ({"size": (32, 48)}, "encoded 32x48 yuv420p, vp9; 48x32 yuv420p, vp9 came back"),
        ({"codec": "h264"}, "encoded 48x32 yuv420p, h264; 48x32 yuv420p, vp9 came back"),
    ],
)
def test_another_video_is_refused(other, reason):
    with pytest.raises(ValueError, match=reason):
        describe(made(), **{**MADE, **other})


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_a_first_frame_that_does_not_decode_is_refused(codec):
    data = bytearray(made(codec=codec))
    start = data.index(b"mdat") + 4
    data[start : start + 200] = bytes(200)
    with pytest.raises(ValueError, match="the first encoded frame does not decode"):
        describe(bytes(data), **{**MADE, "codec": codec})


def test_a_file_that_is_cut_is_refused():
    data = made()
    with pytest.raises(ValueError):
        describe(data[: len(data) * 3 // 4], **MADE)


def test_the_source_is_decoded_once_and_the_output_not_again(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", range(0, 4000, 100))
    read, iterate = [], FrameReader.__iter__

    def counting(reader):
        for item in iterate(reader):
            read.append(reader.name)
            yield item

    monkeypatch.setattr(FrameReader, "__iter__", counting)
    _, source, packed = transcode(path, EncodingSpec(fps=Fraction(0)))
    assert read == [str(path)] * 40
    assert source.num_frames == packed.num_frames == 40


def test_a_video_whose_encoder_fails_is_unreadable(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", range(0, 1000, 100))

    def refuse(*arguments, **options):
        raise ValueError("encoded 10 frames, 9 came back")

    monkeypatch.setattr(transcode_module, "describe", refuse)
    with pytest.raises(Unreadable, match=r"a\.mp4: encoded 10 frames, 9 came back"):
        transcode(path, EncodingSpec())
