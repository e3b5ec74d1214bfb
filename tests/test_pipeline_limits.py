"""Videos, and indexes of tars, that would cost too much are refused before the memory is taken."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packing_cases import write_video

from pipeline.annotations import Video
from pipeline.container import open_video
from pipeline.dataset import Dataset
from pipeline.limits import Limits, check_bytes, limits, set_limits
from pipeline.packets_file import PackedFile
from pipeline.packing.pack_video import Job, check_video, pack_video
from pipeline.packing.probe import Unreadable, probe
from pipeline.packing.transcode import EncodingSpec

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def back_to_the_limits_before():
    before = limits()
    yield
    set_limits(before)


@pytest.fixture
def video(tmp_path) -> Path:
    """25 frames of 64x48 pixels."""
    return write_video(tmp_path / "a.mp4", range(0, 1000, 40), size=(64, 48))


def job_of(path: Path, spec: EncodingSpec | None) -> Job:
    return Job("a", "a", Video("a", "s", None, ()), path.parent, path.name, None, spec)


ADVICE = "if it is no mistake, raise the limit (make-shards --max-{0}, elsewhere --set data.limits.{0}=...)"
TOO_MUCH = {
    "pixels": (Limits(pixels=64 * 48 - 1), "64x48 are 3072 pixels, want at most 3071; "),
    "frames": (Limits(frames=24), "it has 25 frames, want at most 24; "),
}


@pytest.mark.parametrize("name", TOO_MUCH)
@pytest.mark.parametrize("spec", [EncodingSpec(short_side=16), None], ids=["re-encoded", "copied"])
def test_a_video_beyond_a_limit_is_rejected_with_the_way_out(video, name, spec):
    assert pack_video(job_of(video, spec))[0].video.reject is None
    bounds, reason = TOO_MUCH[name]
    set_limits(bounds)
    for result in (pack_video(job_of(video, spec))[0], check_video(job_of(video, spec))):
        assert result.video.reject == reason + ADVICE.format(name)


def test_frames_are_counted_where_the_head_does_not_say_how_many(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(0, 1000, 40), size=(64, 48))
    set_limits(Limits(frames=25))
    assert pack_video(job_of(path, None))[0].video.reject is None
    set_limits(Limits(frames=24))
    reason = "it has over 24 frames, want at most 24; " + ADVICE.format("frames")
    assert pack_video(job_of(path, None))[0].video.reject == reason


def test_bytes_count_only_where_they_are_kept(video):
    size = video.stat().st_size
    set_limits(Limits(bytes=size - 1))
    assert pack_video(job_of(video, EncodingSpec(short_side=16)))[0].video.reject is None
    reason = f"its encoded video has {size} bytes, want at most {size - 1}; " + ADVICE.format("bytes")
    assert pack_video(job_of(video, None))[0].video.reject == reason


def test_the_defaults_take_8k_and_ten_hours():
    bounds = Limits()
    assert bounds.pixels > 8192 * 4320 and bounds.frames >= 10 * 3600 * 25
    check_bytes(bounds.bytes)
    with pytest.raises(ValueError, match=f"has {bounds.bytes + 1} bytes"):
        check_bytes(bounds.bytes + 1)


def test_a_picture_that_is_larger_than_the_head_says_is_not_decoded(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40), size=(160, 128), codec="mpeg4")
    data = path.read_bytes()
    wide, small = b"\xb0\x81\xa0", b"\xb0\x81\x10"  # PixelWidth of the track in Matroska: 160 and 16
    assert data.count(wide) == 1
    path.write_bytes(data.replace(wide, small))
    set_limits(Limits(pixels=160 * 128 - 1))
    with pytest.raises(Unreadable, match=r"160x128 are 20480 pixels|a picture of over 20479 pixels"):
        probe(path)


BOMB = """
import resource, sys
from pipeline.packing.pack_video import check_video, pack_video
from test_pipeline_limits import job_of
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(check_video(job_of(Path(sys.argv[1]), None)).video.reject)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_bomb_of_pixels_takes_no_memory(tmp_path):
    """A GIF of a hundred bytes that states 16000x16000 pixels: 1 GB when decoded."""
    head = b"GIF89a" + struct.pack("<HHBBB", 16000, 16000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"," + struct.pack("<HHHHB", 0, 0, 16000, 16000, 0) + b"\x02\x02\x44\x01\0"
    (tmp_path / "a.gif").write_bytes(head + image + b";")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", BOMB, str(tmp_path / "a.gif")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    reason, mebibytes = done.stdout.splitlines()
    assert reason.startswith("16000x16000 are 256000000 pixels, want at most 36000000; "), done
    assert int(mebibytes) < 100


def test_what_an_index_claims_is_not_read_whole(tmp_path, video):
    """A tar with a hole of 10 GB, and an index that says it is one video."""
    from pipeline.packing.shard_writer import pack_samples, write_dataset

    result, data = pack_video(job_of(video, None))
    videos, shards = pack_samples(tmp_path / "set", [(result.video, data)])
    huge = 10_000_000_000
    shards = [replace(shards[0], bytes=huge)]
    write_dataset(tmp_path / "set", classes=["a"], videos=videos, shards=shards, packing={})
    os.truncate(tmp_path / "set" / "00000.tar", huge)
    index = tmp_path / "set" / "00000.idx"
    index.write_text(index.read_text().replace(f" {len(data)} a.mp4", f" {huge - 4096} a.mp4"))
    with pytest.raises(
        ValueError, match=rf"00000\.tar: .*a.*has {huge - 4096} bytes, want at most {4 * 2**30}; "
    ):
        Dataset.open(tmp_path / "set").read("a")


def test_a_file_that_has_to_be_read_whole_is_bounded_as_well(tmp_path):
    import numpy as np

    path = write_video(tmp_path / "a.mkv", range(0, 1000, 40), size=(64, 48))
    packed = PackedFile(path, 25)
    assert not packed.in_order
    set_limits(Limits(bytes=10))
    with pytest.raises(ValueError, match="want at most 10; "):
        packed.encoded_frames(np.array([0]))


def test_limits_are_settings_of_the_data():
    from train.settings import load_settings

    settings = load_settings(Path("demo"), ["data.shards=x", "data.limits.pixels=5"])
    assert json.loads(settings.model_dump_json())["data"]["limits"]["pixels"] == 5


def test_a_video_beyond_the_limits_is_not_opened(video):
    set_limits(Limits(pixels=10))
    with pytest.raises(ValueError, match="64x48 are 3072 pixels"), open_video(video):
        pass


def test_a_codec_that_nobody_knows_is_one_line(tmp_path):
    path = tmp_path / "unknown.mp4"
    write_video(path, range(6), codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(ValueError, match="no decoder for its video stream"), open_video(path):
        pass
