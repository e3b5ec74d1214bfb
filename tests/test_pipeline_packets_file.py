"""Parts of packed files: few bytes, the very pixels of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from painted_video import painted_video

from pipeline.decode import decode_frames
from pipeline.packets_file import PackedFile


def pixels(data: bytes, frames, num_frames: int, codec: str) -> np.ndarray:
    options = {"codec": codec, "num_frames": num_frames, "device": "cpu", "decode_chunk_mib": 128}
    return np.concatenate(
        [chunk.numpy().copy() for chunk in decode_frames(data, np.unique(frames), **options)]
    )


@pytest.mark.parametrize(("codec", "name"), [("libvpx-vp9", "vp9"), ("libx264", "h264")])
def test_a_part_holds_the_frames_it_is_asked_for_and_little_else(tmp_path, codec, name):
    options = {"crf": "20", "bf": "0", "b": "0"}  # no B-frames, as transcode encodes
    path = tmp_path / "v.mp4"
    path.write_bytes(painted_video(96, size=(48, 64), codec=codec, gop=8, options=options))
    file = PackedFile(path, 96)
    assert file.in_order
    frames = np.array([[50, 51, 52], [85, 85, 84]])
    data, numbers, count = file.encoded_frames(frames)
    assert count == 5 + 6  # from the key frames 48 and 80 on
    assert numbers.tolist() == [[2, 3, 4], [10, 10, 9]]
    whole = pixels(path.read_bytes(), frames, 96, name)
    assert np.array_equal(pixels(data, numbers, count, name), whole)
    assert len(data) < path.stat().st_size / 3


def test_of_a_file_with_b_frames_the_whole_is_given(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(painted_video(40, size=(48, 64), codec="libx264"))
    frames = np.array([[30, 31]])
    data, numbers, count = PackedFile(path, 40).encoded_frames(frames)
    assert data == path.read_bytes() and numbers is frames and count == 40
