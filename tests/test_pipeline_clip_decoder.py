"""Clips of videos: the right frames whatever the number of workers; on a GPU only what it decodes right."""

from __future__ import annotations

import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import av
import numpy as np
import nvdec_stand_in
import pytest
import torch
from nvdec_stand_in import H200
from painted_video import encode, number_of, painted, painted_video

from pipeline import clip_decoder, decode
from pipeline.augment import CENTRE, Colour, View
from pipeline.clip_decoder import ClipDecoder, ClipRequest, default_workers
from pipeline.gpu_formats import CODECS, StreamFormat, refusal_by_any_gpu, refusal_by_driver
from pipeline.packing.probe import probe
from pipeline.pictures import pictures_of
from pipeline.records import PackedVideo
from pipeline.settings import DataSettings
from tools.machine.decoders import encode_clip

PYAV = "through PyAV"  # not a codec that DALI knows, so the other path decodes
CPU = torch.device("cpu")
KINDS = {  # FFmpeg's encoder -> container
    "libvpx-vp9": "mp4",
    "libvpx": "webm",
    "libx264": "mp4",
    "libx265": "mp4",
    "mpeg4": "mp4",
    "mjpeg": "matroska",
    "mpeg2video": "matroska",
}


@pytest.fixture(scope="module")
def vp9() -> bytes:
    return painted_video(120)


def packed(data: bytes, key: str = "v", **fields) -> PackedVideo:
    metadata = probe(data)
    entry = {name: getattr(metadata, name) for name in ("num_frames", "width", "height", "codec", "pix_fmt")}
    entry = {**entry, "shard": "00000.tar", "reject": None, "source": key, "actions": (), **fields}
    return PackedVideo(key, "training", float(metadata.duration), float(metadata.fps), **entry)


def settings_of(**values) -> DataSettings:
    return DataSettings(shards="unused", **{"resize": 32, "crop": 32, "decode_workers": 1, **values})


def clips_of(data, frames, *, view=CENTRE, video=None, codec=None, remark=pytest.fail, **options):
    """The clips of a video as the loader decodes them. codec: a false one; options: settings."""
    video = video or packed(data, **({"codec": codec} if codec else {}))
    settings, frames = settings_of(**options), np.asarray(frames)
    clips = torch.empty((len(frames), 3, frames.shape[1], settings.crop, settings.crop), dtype=torch.uint8)
    with closing(ClipDecoder(settings, CPU, videos=[video], remark=remark)) as decoder:
        decoder.start(request_of(video, data, frames, clips, view=view)).wait()
    return clips


def request_of(video, data, frames, clips, *, view=CENTRE) -> ClipRequest:
    """All frames (N, L) of a video into all of the clips."""
    slots = np.nonzero(frames >= 0)
    return ClipRequest(video, data, frames[slots], video.num_frames, view, pictures_of(clips), slots)


def numbers_in(clips) -> list[list[int]]:
    return [[number_of(picture) for picture in clip] for clip in clips.permute(0, 2, 3, 4, 1).numpy()]


def off(first, second) -> int:
    return int((first.int() - second.int()).abs().max())


# ------------------------------------------------------------------------------------------------ clips


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("codec", ["vp9", PYAV])
def test_clips_hold_the_frames_asked_for_in_any_order_and_twice(vp9, codec, workers):
    frames = [[0, 0, 5, 10], [90, 60, 61, 119], [5, 6, 7, 8]]
    clips = clips_of(vp9, frames, codec=codec, decode_workers=workers)
    assert clips.shape == (3, 3, 4, 32, 32) and clips.dtype == torch.uint8 and clips.is_contiguous()
    assert numbers_in(clips) == frames


@pytest.mark.slow
@pytest.mark.parametrize("resize", [40, (48, 32)])
@pytest.mark.parametrize("codec", ["vp9", PYAV])
def test_clips_are_replayable_and_depend_neither_on_chunks_nor_on_workers(vp9, codec, resize):
    view = View(0.2, 0.9, True, Colour(1.1, 0.8, 1.3))
    frames = np.arange(120).reshape(8, 15)
    options = {"resize": resize, "crop": 24, "view": view}
    clips = clips_of(vp9, frames, **options)
    for workers in (1, 2, 5, 8):
        for mib in (1, 128):
            again = clips_of(
                vp9, frames, codec=codec, decode_workers=workers, decode_chunk_mib=mib, **options
            )
            assert torch.equal(clips, again)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libvpx-vp9", "mpeg4"])
def test_workers_do_not_change_the_clips_of_videos_with_b_frames(encoder):
    data = painted_video(150, codec=encoder, container=KINDS[encoder], gop=40)
    frames = np.arange(150).reshape(10, 15)
    one = clips_of(data, frames, resize=64, crop=64)
    assert numbers_in(one) == frames.tolist()
    assert torch.equal(one, clips_of(data, frames, resize=64, crop=64, decode_workers=4))


def test_all_workers_decode_one_video(vp9, monkeypatch):
    threads, decode_frames = set(), ClipDecoder._decode_frames
    together = threading.Barrier(3, timeout=20)

    def noted(self, *arguments):
        threads.add(threading.current_thread().name)
        together.wait()  # breaks unless all three run at the same time
        decode_frames(self, *arguments)

    monkeypatch.setattr(ClipDecoder, "_decode_frames", noted)
    clips_of(vp9, [range(120)], decode_workers=3)
    assert len(threads) == 3 and all(name.startswith("leantad-decoder") for name in threads)


def test_a_video_stays_whole_where_others_keep_the_threads_busy(vp9, monkeypatch):
    """Opening it once more for each part would cost more than it gives."""
    counts, decode_frames, second_began = [], ClipDecoder._decode_frames, threading.Event()

    def noted(self, video, request, wanted, *rest):
        counts.append(len(wanted))
        assert len(counts) > 1 or second_began.wait(20)  # holds the first one's thread
        second_began.set()
        decode_frames(self, video, request, wanted, *rest)

    monkeypatch.setattr(ClipDecoder, "_decode_frames", noted)
    video = packed(vp9)
    with closing(ClipDecoder(settings_of(decode_workers=2), CPU, videos=[video], remark=print)) as decoder:
        for count in (20, 120):  # 20 frames are too few to be split
            clips = torch.empty((1, 3, count, 32, 32), dtype=torch.uint8)
            pending = decoder.start(request_of(video, vp9, np.arange(count)[None], clips))
        pending.wait()
    assert sorted(counts) == [20, 120] and numbers_in(clips) == [list(range(120))]


def test_the_error_of_a_worker_is_that_of_the_video_and_the_threads_end(vp9):
    broken = bytearray(vp9)
    for at in range(2000, len(vp9) - 4000, 97):
        broken[at] ^= 0x5A
    for workers in (1, 3):
        with pytest.raises(ValueError, match="decode|broken|missing"):
            clips_of(bytes(broken), [range(120)], video=packed(vp9), decode_workers=workers)
    assert not [t for t in threading.enumerate() if t.name.startswith("leantad-decoder")]


def test_closing_releases_the_decoders(vp9, monkeypatch):
    nvdec_stand_in.install(monkeypatch)
    large = painted_video(60, size=(128, 128))
    for data in (vp9, large):
        clips_of(data, [range(60)], decode_workers=2, remark=print)
    assert not any(decode._idle.values())


@pytest.mark.slow
def test_no_more_than_the_bytes_of_a_chunk_are_held_at_source_size(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    data = painted_video(120, size=(256, 320), codec="libx264", gop=30)
    for workers, mib in ((1, 8), (4, 8), (2, 1)):
        nvdec.most_bytes = 0
        clips_of(data, [range(120)], decode_workers=workers, decode_chunk_mib=mib)
        frame = 256 * 320 * 3
        assert frame <= nvdec.most_bytes <= max(mib * 2**20, workers * frame)
    assert nvdec.bytes == 0


def test_the_default_is_one_worker_for_each_core_of_a_rank_or_decoder_of_the_gpu(monkeypatch):
    cores = len(clip_decoder.os.sched_getaffinity(0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    assert default_workers(None) == min(cores, 8)
    monkeypatch.setattr(clip_decoder.os, "sched_getaffinity", lambda process: set(range(32)))
    assert default_workers(None) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(None) == 4
    nvdec_stand_in.install(monkeypatch)
    gpu = clip_decoder.gpu_decoder_for(settings_of(), CPU)
    assert gpu.num_decoders() == 7 and default_workers(gpu) == 2, "each holds memory of the GPU"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert default_workers(gpu) == 1


def test_where_the_gpu_decodes_none_of_the_videos_the_cores_count(monkeypatch):
    monkeypatch.setattr(clip_decoder.os, "sched_getaffinity", lambda process: set(range(6)))
    nvdec_stand_in.install(monkeypatch)
    large, small = (packed(painted_video(4, size=(s, s), codec="libvpx-vp9")) for s in (128, 48))
    settings = settings_of(decode_workers=None)
    for videos, workers in (([large], 2), ([large, small], 2), ([small], 6)):
        with closing(ClipDecoder(settings, CPU, videos=videos, remark=str)) as decoder:
            assert decoder.workers == workers


# -------------------------------------------------------------------------------- which decoder, and back


@pytest.mark.parametrize(("encoder", "size"), [("libx264", (64, 64)), ("libvpx-vp9", (128, 128))])
def test_a_gpu_decodes_what_it_can_and_nothing_is_reported(monkeypatch, encoder, size):
    nvdec = nvdec_stand_in.install(monkeypatch)
    data = painted_video(60, size=size, codec=encoder)
    options = {"resize": 64, "crop": 64}
    there = clips_of(data, [range(60)], decode_workers=2, **options)
    assert nvdec.calls and nvdec.sessions == nvdec.most_sessions <= 3
    assert numbers_in(there) == [list(range(60))]
    here = clips_of(data, [range(60)], decoder="cpu", **options)
    assert off(there, here) == 1, "the stand-in is one level off: it was the one that decoded"


SIZES = [(16, 16), (48, 48), (126, 126), (128, 228), (144, 144), (144, 176), (129, 145)]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_codec_and_size_comes_back_right_with_a_gpu(monkeypatch, encoder, size):
    """What the GPU does not decode, or wrongly, the CPU does, and one line says so."""
    nvdec = nvdec_stand_in.install(monkeypatch)
    if (encoder.startswith("libx26") and size[0] % 2) or (encoder == "libx265" and min(size) < 64):
        pytest.skip("x264 and x265 take no odd sides, and x265 dies of small ones")
    pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
    data = painted_video(12, size=size, codec=encoder, container=KINDS[encoder], pix_fmt=pix_fmt)
    lines = []
    options = {"resize": 16, "crop": 16}
    there = clips_of(data, [range(12)], remark=lines.append, **options)
    assert off(there, clips_of(data, [range(12)], decoder="cpu", **options)) <= 1
    codec, width, height = probe(data).codec, size[1], size[0]
    limits = H200.get((codec, 8))
    fits = limits and width >= limits.min_width and height >= limits.min_height
    fits = fits or (limits and codec in ("h264", "vp8", "mpeg4") and width >= 33)
    expected = bool(fits) and not (width % 2 or height % 2)
    assert bool(nvdec.calls) == expected
    assert len(lines) == (not expected)
    if lines:
        assert lines[0].startswith("loader: the CPU decodes 1 of 1 video, not the GPU: ")


@pytest.mark.parametrize(
    ("encoder", "pix_fmt"),
    [
        *itertools.product(("libx264", "libx265", "libvpx-vp9"), ("yuv422p", "yuv444p")),
        *itertools.product(("libx264", "libx265"), ("yuv420p10le",)),
        ("libx265", "gray"),
    ],
)
def test_pixels_that_a_gpu_gets_wrong_in_silence_never_reach_it(monkeypatch, encoder, pix_fmt):
    nvdec = nvdec_stand_in.install(monkeypatch)
    data, lines = painted_video(8, size=(160, 160), codec=encoder, pix_fmt=pix_fmt), []
    there = clips_of(data, [range(8)], resize=64, crop=64, remark=lines.append)
    assert numbers_in(there) == [list(range(8))]
    if pix_fmt == "yuv420p10le" and encoder == "libx265":
        assert nvdec.calls and not lines
    else:
        assert not nvdec.calls and len(lines) == 1


def test_a_format_that_fails_is_tried_once_and_reported_once_with_its_number(monkeypatch):
    limits = {**H200, ("av1", 8): H200["vp9", 8]}  # the driver promises what DALI then refuses
    nvdec = nvdec_stand_in.install(monkeypatch, limits=limits)
    with ThreadPoolExecutor(1) as own_thread:  # for root SVT-AV1 makes its caller a real-time thread
        data = own_thread.submit(encode_clip, "av1").result()
    videos = [packed(data, f"v{number}") for number in range(5)]
    lines: list[str] = []
    with closing(ClipDecoder(settings_of(), CPU, videos=videos, remark=lines.append)) as decoder:
        for video in videos:
            clips = torch.empty((1, 3, 24, 32, 32), dtype=torch.uint8)
            decoder.start(request_of(video, data, np.arange(24)[None], clips)).wait()
            assert torch.equal(clips, clips_of(data, [range(24)], decoder="cpu"))
    assert len(nvdec.calls) == 1
    (line,) = lines
    assert "Codec av1 is not supported by NVDEC on this platform." in line
    assert "av1 192x160 yuv420p, 5 videos" in line and "\n" not in line


def test_wrong_pixels_of_a_format_that_no_rule_refuses_are_noticed(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    decoded = nvdec_stand_in.NvdecDecoder._decoded
    monkeypatch.setattr(nvdec_stand_in.NvdecDecoder, "_decoded", lambda self: decoded(self).flip(1))
    data, lines = painted_video(24, codec="libx264"), []
    clips = clips_of(data, [range(24)], remark=lines.append)
    assert numbers_in(clips) == [list(range(24))] and len(nvdec.calls) == 1
    assert len(lines) == 1 and "its pixels are wrong" in lines[0]


def test_a_gpu_without_a_free_session_leaves_the_rest_to_the_cpu(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch, max_sessions=1)
    data, lines = painted_video(300, codec="libx264", gop=32), []
    clips = clips_of(data, [range(300)], decode_workers=4, remark=lines.append, resize=64, crop=64)
    assert numbers_in(clips) == [list(range(300))]
    assert nvdec.most_sessions == 1
    assert len(lines) <= 1 and all("Failed to create video decoder" in line for line in lines)


@pytest.mark.slow
def test_a_gpu_that_fails_in_the_middle_of_a_video_goes_on_on_the_cpu(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    decoded, lines = nvdec_stand_in.NvdecDecoder._decoded, []

    def failing(self):
        if len(nvdec.calls) == 3:
            raise nvdec.fail("the GPU fell off the bus")
        return decoded(self)

    monkeypatch.setattr(nvdec_stand_in.NvdecDecoder, "_decoded", failing)
    data = painted_video(120, size=(256, 256), codec="libx264")
    clips = clips_of(data, [range(120)], decode_chunk_mib=8, remark=lines.append)
    assert numbers_in(clips) == [list(range(120))]
    assert len(lines) == 1 and "fell off the bus" in lines[0]


def test_a_broken_video_does_not_spoil_its_format(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    whole = painted_video(60, codec="libx264")
    metadata = packed(whole)
    cut = whole[: len(whole) * 2 // 3] if whole.find(b"moov") < len(whole) // 2 else None
    broken = bytearray(whole)
    start = whole.find(b"mdat") + 4
    broken[start : start + 4000] = bytes(4000)
    lines: list[str] = []
    with closing(ClipDecoder(settings_of(), CPU, videos=[metadata], remark=lines.append)) as decoder:
        clips = torch.empty((1, 3, 60, 32, 32), dtype=torch.uint8)
        with pytest.raises(ValueError):
            decoder.start(request_of(metadata, bytes(broken), np.arange(60)[None], clips)).wait()
        nvdec.calls.clear()
        decoder.start(request_of(metadata, whole, np.arange(60)[None], clips)).wait()
    assert cut is None or len(cut) < len(whole)
    assert nvdec.calls and not lines and numbers_in(clips) == [list(range(60))]


def test_of_two_video_streams_the_gpu_decodes_the_one_that_the_cpu_does(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, side in zip(streams, (96, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for number in range(40):
            for stream, shift in zip(streams, (0, 100), strict=True):
                picture = painted(number + shift, stream.height, stream.width)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())
    clips = clips_of(buffer.getvalue(), [range(40)], resize=64, crop=64)
    assert numbers_in(clips) == [list(range(40))] and nvdec.calls


def test_interlaced_pictures_go_to_the_cpu(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    options = {"x264-params": "interlaced=1:bframes=0"}
    data = encode((painted(n, 64, 64) for n in range(20)), codec="libx264", options=options)
    lines = []
    clips_of(data, [range(20)], remark=lines.append)
    assert not nvdec.calls and len(lines) == 1 and "interlaced" in lines[0]


def test_gpu_alone_refuses_at_once_what_it_cannot_and_cpu_alone_asks_no_gpu(monkeypatch):
    nvdec = nvdec_stand_in.install(monkeypatch)
    small, large = packed(painted_video(8, size=(48, 48))), packed(painted_video(8, size=(128, 128)))
    with pytest.raises(ValueError, match=r"data.decoder: got gpu, .*from 128x128 pixels on \(1 video\)"):
        ClipDecoder(settings_of(decoder="gpu"), CPU, videos=[small, large], remark=pytest.fail)
    assert (
        off(
            clips_of(painted_video(8, size=(128, 128)), [range(8)], decoder="gpu"),
            clips_of(painted_video(8, size=(128, 128)), [range(8)], decoder="cpu"),
        )
        == 1
    )
    nvdec.calls.clear()
    clips_of(painted_video(8, size=(128, 128)), [range(8)], decoder="cpu")
    assert not nvdec.calls


def test_gpu_alone_without_a_gpu_is_an_error():
    with pytest.raises(ValueError, match="data.decoder: got gpu, want auto or cpu: run.device is the CPU"):
        ClipDecoder(settings_of(decoder="gpu"), CPU, videos=[], remark=pytest.fail)


# ------------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        (("vp9", 128, 128, "yuv420p"), None),
        (("vp9", 126, 128, "yuv420p"), "GPUs decode vp9 from 128x128 pixels on"),
        (("h264", 48, 16, "yuvj420p"), None),
        (("h264", 34, 2, "yuv420p"), None),  # coded as 48x16
        (("h264", 32, 16, "yuv420p"), "GPUs decode h264 from 48x16 pixels on"),
        (("hevc", 160, 142, "yuv420p"), "GPUs decode hevc from 144x144 pixels on"),
        (("hevc", 160, 144, "yuv420p10le"), None),
        (("vp9", 321, 240, "yuv420p"), "GPUs decode odd sides wrongly"),
        (("vp9", 320, 241, "yuv420p"), "GPUs decode odd sides wrongly"),
        (("vp9", 320, 240, "yuv422p"), "GPUs decode yuv422p wrongly, want 4:2:0"),
        (("vp9", 320, 240, "yuv444p"), "GPUs decode yuv444p wrongly, want 4:2:0"),
        (("vp9", 320, 240, "yuva420p"), "GPUs decode yuva420p wrongly, want 4:2:0"),
        (("mjpeg", 320, 240, "yuvj420p"), "no GPU decodes mjpeg here"),
        (("prores", 320, 240, "yuv422p10le"), "no GPU decodes prores here"),
    ],
)
def test_the_rules_of_any_gpu(format, reason):
    assert refusal_by_any_gpu(StreamFormat(*format)) == reason


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        (("h264", 4096, 4096, "yuv420p"), None),
        (("h264", 4098, 64, "yuv420p"), "this GPU decodes h264 up to 4096x4096 pixels"),
        (("h264", 640, 480, "yuv420p10le"), "this GPU does not decode h264 of 10 bit"),
        (("av1", 640, 480, "yuv420p"), "this GPU does not decode av1 of 8 bit"),
        (
            ("mpeg4", 2032, 2032, "yuv420p"),
            "this GPU decodes mpeg4 up to 2032x2032 pixels",
        ),  # too many blocks
    ],
)
def test_the_limits_of_a_driver(format, reason):
    wanted = StreamFormat(*format)
    limits = H200.get((wanted.codec, wanted.bits), nvdec_stand_in.NONE)
    assert refusal_by_driver(wanted, limits) == reason


def test_every_codec_of_the_gpu_has_a_number_and_a_least_size():
    assert all(len(entry) == 3 for entry in CODECS.values())
