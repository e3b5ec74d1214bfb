"""Parts of packed files: few bytes, the very pixels of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from odd_video import in_own_thread
from painted_video import painted_video

from pipeline.dataset import Dataset
from pipeline.decode import decode_frames
from pipeline.files import file_sha256
from pipeline.packets import open_packets
from pipeline.packets_file import PackedFile
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo


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


def test_of_a_file_that_is_refreshed_bit_by_bit_the_whole_is_given(tmp_path):
    """Its key frames are where a refresh begins: pictures are whole again some frames later."""
    options = {"x264-params": "intra-refresh=1:bframes=0:keyint=25:scenecut=0"}
    path = tmp_path / "v.mp4"
    path.write_bytes(painted_video(60, size=(48, 64), codec="libx264", options=options))
    frames = np.array([[26, 27]])
    with open_packets(path.read_bytes(), 60) as video:
        assert 25 in video.keyframes and video.starts.tolist() == [0]
    data, numbers, count = PackedFile(path, 60).encoded_frames(frames)
    assert data == path.read_bytes() and numbers is frames and count == 60
    assert np.array_equal(pixels(data, frames, 60, "h264"), pixels(data, range(60), 60, "h264")[26:28])


def test_key_frames_of_an_open_gop_of_hevc_are_enough_where_nothing_is_reordered(tmp_path):
    options = {"x265-params": "open-gop=1:bframes=0:keyint=25:scenecut=0:log-level=none"}
    path = tmp_path / "v.mp4"
    path.write_bytes(painted_video(60, size=(48, 64), codec="libx265", options=options))
    data, numbers, count = PackedFile(path, 60).encoded_frames(np.array([[26, 27]]))
    assert (numbers.tolist(), count) == ([[1, 2]], 3)
    whole = pixels(path.read_bytes(), range(60), 60, "hevc")
    assert np.array_equal(pixels(data, numbers, count, "hevc"), whole[26:28])


def test_a_part_of_av1_is_cut_out_though_its_decoder_encodes_nothing(tmp_path):
    path, options = tmp_path / "v.mp4", {"preset": "12", "svtav1-params": "pred-struct=1"}
    encode = in_own_thread(painted_video)  # SVT-AV1 makes its caller a real-time thread
    path.write_bytes(encode(60, size=(64, 64), codec="libsvtav1", gop=20, options=options))
    data, numbers, count = PackedFile(path, 60).encoded_frames(np.array([[42, 43]]))
    assert (numbers.tolist(), count) == ([[2, 3]], 4)
    whole = pixels(path.read_bytes(), range(60), 60, "libdav1d")
    assert np.array_equal(pixels(data, numbers, count, "libdav1d"), whole[42:44])


@pytest.mark.parametrize(("codec", "container"), [("huffyuv", "avi"), ("libvpx-vp9", "matroska")])
def test_of_other_containers_the_whole_is_given_also_where_matroska_knows_no_such_codec(
    tmp_path, codec, container
):
    path = tmp_path / "v"
    path.write_bytes(painted_video(40, codec=codec, container=container, pix_fmt="yuv422p", options={}))
    data, numbers, count = PackedFile(path, 40).encoded_frames(frames := np.array([[30, 31]]))
    assert data == path.read_bytes() and numbers is frames and count == 40


def test_a_file_of_mp4_whose_codec_matroska_does_not_know_is_given_whole(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(painted_video(40))
    assert PackedFile(path, 40).in_order

    def refused(*_, **__):
        raise ValueError("'matroska' format does not support 'x' codec")

    monkeypatch.setattr("pipeline.packets_file.mux_packets", refused)
    assert not PackedFile(path, 40).in_order


# ------------------------------------------------------------------------------- the same inside of a tar


def data_set(folder: Path, data: bytes, num_frames: int) -> Dataset:
    """Three times the same video in one tar."""
    shape = {"num_frames": num_frames, "width": 64, "height": 48, "codec": "vp9", "actions": ()}
    entry = {"shard": None, "reject": None, "source": "a"}
    videos = [PackedVideo(key, "training", num_frames / 25, 25.0, **shape, **entry) for key in "abc"]
    packed, shards = pack_samples(folder, [(video, data) for video in videos], shard_size=3)
    write_dataset(folder, classes=[], videos=packed, shards=shards, packing={})
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def video() -> bytes:
    return painted_video(96, size=(48, 64), gop=8)


PART = np.array([[50, 51, 52], [85, 85, 84]])


def test_a_part_of_a_video_in_a_tar_is_read_alone_and_checked_once(tmp_path, video, monkeypatch):
    dataset, checked = data_set(tmp_path, video, 96), []
    monkeypatch.setattr("pipeline.dataset.file_sha256", lambda part: checked.append(1) or file_sha256(part))
    monkeypatch.setattr(Dataset, "read", lambda self, key: pytest.fail("read whole"))
    for _ in range(3):
        data, numbers, count = dataset.encoded_frames("b", PART)
        assert count == 5 + 6 and len(data) < len(video) / 3
        assert np.array_equal(pixels(data, numbers, count, "vp9"), pixels(video, PART, 96, "vp9"))
    assert len(checked) == 1


def test_more_than_half_of_a_video_is_read_whole(tmp_path, video):
    data, numbers, count = data_set(tmp_path, video, 96).encoded_frames("b", np.array([[0, 60]]))
    assert data == video and numbers.tolist() == [[0, 60]] and count == 96


def test_of_a_video_with_b_frames_in_a_tar_the_whole_is_given(tmp_path):
    data = painted_video(96, size=(48, 64), codec="libx264")
    found, numbers, count = data_set(tmp_path, data, 96).encoded_frames("c", PART)
    assert found == data and numbers is PART and count == 96


def test_a_part_of_a_damaged_or_cut_video_is_refused_by_name(tmp_path, video):
    dataset = data_set(tmp_path, video, 96)
    tar, (offset, _) = tmp_path / "00000.tar", dataset.index("00000.tar")["b.mp4"]
    whole = bytearray(tar.read_bytes())
    dataset.encoded_frames("c", PART)  # found to be as packed
    for damaged in (whole[: offset + 500], whole[:offset] + b"?" + whole[offset + 1 :]):
        tar.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"00000\.tar: b \(a\): .*(the tar is cut, 500 of|sha256 differs)"
        ):
            dataset.encoded_frames("b", PART)
    tar.write_bytes(whole[: offset + 500])
    with pytest.raises(ValueError, match=r"00000\.tar has become shorter since it was opened"):
        dataset.encoded_frames("c", PART)


def test_places_of_no_more_than_so_many_packets_are_kept(tmp_path, video, monkeypatch):
    monkeypatch.setattr("pipeline.dataset.MOST_PACKETS", 200)  # two videos of 96
    dataset = data_set(tmp_path, video, 96)
    for key in "abca":
        assert dataset.encoded_frames(key, PART)[2] == 11
    assert list(dataset._files) == ["c", "a"]
