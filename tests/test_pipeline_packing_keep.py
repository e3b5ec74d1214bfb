"""--copy: bytes are kept only of files that training reads as a player shows them, and the ways out work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ffmpeg import follow
from odd_video import FPS, remuxed, two_tracks, video
from packing_cases import write_video
from painted_video import number_of

from pipeline.annotations import Video
from pipeline.packets import decode_by_av, open_packets
from pipeline.packing.pack_video import Job, pack_video
from pipeline.packing.prepare import prepare


def kept(path: Path, **options):
    """The packed video (with its reject) and bytes of a file that is to be kept as it is."""
    job = Job("a", "a", Video("a", "training", None, ()), path.parent, path.name, None, None, **options)
    result, data = pack_video(job)
    return result.video, data


def resized(folder: Path) -> bytes:
    """A stream whose pictures change their size, as of a video call."""
    sizes = ((64, 96), (32, 48))
    return b"".join(video(folder, container="mpegts", size=size, stamps=range(30)) for size in sizes)


MISREAD = {
    "turned.mp4": (
        lambda d: write_video(d / "x.mp4", range(0, 1000, 40), rotation=90).read_bytes(),
        "turned by 90 degrees",
    ),
    "uneven.mp4": (lambda d: video(d, stamps=[0, 1, 2, 20, 21]), "uneven times"),
    "late.mkv": (lambda d: video(d, container="matroska", stamps=range(50, 75), sound_from=0.0), "2.0"),
    "resized.ts": (resized, "its pictures change from 96x64 yuv420p to 48x32 yuv420p"),
    "cut.ts": (lambda d: remuxed(video(d, container="mpegts"), "mpegts", skip=5), "is shown at 0.8"),
    "raw.h264": (lambda d: video(d, container="h264"), "no time stamps"),
    "rgba.mov": (lambda d: video(d, "png", "mov", pix_fmt="rgba", stamps=range(25)), "pixels are rgba"),
    "rgb.mkv": (lambda d: video(d, "ffv1", "matroska", pix_fmt="bgr0", stamps=range(25)), "pixels are bgr0"),
    "alpha.mkv": (lambda d: video(d, "ffv1", "matroska", pix_fmt="yuva420p", stamps=range(25)), "yuva420p"),
    "packed.nut": (lambda d: video(d, "rawvideo", "nut", pix_fmt="yuyv422", stamps=range(25)), "yuyv422"),
    "one_bit.mov": (lambda d: video(d, "png", "mov", pix_fmt="monob", stamps=range(25)), "monob"),
    "gif.gif": (lambda d: video(d, "gif", "gif", pix_fmt="rgb8", stamps=range(25)), "pixels are bgra"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISREAD)
def test_what_training_would_misread_is_rejected_and_both_ways_out_work(tmp_path, name):
    make, reason = MISREAD[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    packed, data = kept(path)
    assert reason in packed.reject and data == b"" and packed.reject.endswith("; pack it without --copy")

    (rejected,) = [one for one, _ in prepare({"a": path}, None, workers=1)]  # predict, weights of kept bytes
    assert reason in rejected.reject and "--copy" not in rejected.reject
    again = follow(rejected.reject, path, tmp_path / "again.mp4", RATE=FPS)
    packed, data = kept(again)
    assert packed.reject is None and packed.fps == FPS and data == again.read_bytes()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_pixels_that_training_reads_are_kept(tmp_path, pix_fmt):
    path = tmp_path / "a.mkv"
    path.write_bytes(video(tmp_path, container="matroska", pix_fmt=pix_fmt, stamps=range(20)))
    packed, data = kept(path)
    assert packed.reject is None and data == path.read_bytes()
    with open_packets(data, 20) as opened:
        numbers = [number_of(np.dstack(planes)) for planes in decode_by_av(opened, np.arange(20))]
    assert numbers == list(range(20))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "flv"])
def test_of_kept_bytes_that_break_off_the_frames_are_read_that_decode(tmp_path, container):
    path = tmp_path / "a.bin"
    data = video(tmp_path, container=container)
    path.write_bytes(data[: int(len(data) * 0.8)])
    packed, kept_bytes = kept(path)
    assert kept(path, strict=True)[0].reject or container in ("mpegts", "flv")
    if packed.reject is None:
        with open_packets(kept_bytes, packed.num_frames) as opened:
            frames = decode_by_av(opened, np.arange(packed.num_frames))
            assert [number_of(np.dstack(planes)) for planes in frames][:20] == list(range(20))
    else:
        assert "; pack it without --copy" in packed.reject


def test_the_default_one_of_two_tracks_is_kept(tmp_path):
    parts = [video(tmp_path, "libvpx-vp9", "webm", stamps=range(n), size=(n, n)) for n in (32, 48)]
    for default, wanted in ((0, 32), (1, 48)):
        packed, _ = kept(two_tracks(parts, tmp_path / "two.mkv", default=default))
        assert packed.reject is None and (packed.num_frames, packed.width) == (wanted, wanted)
