"""Decoding: the right frame under every number, equal pixels from both decoders, errors instead of black."""

import io

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from painted_video import encode, number_of, painted_video

from pipeline.decode import DaliDecoder, decode_frames
from pipeline.packets import RGB_FLAGS, _to_rgb, cut, open_packets, packet_runs
from pipeline.packing.encoder import BT2020

PYAV = "through PyAV"  # not a codec that DALI knows, so the other path decodes
MIB_OF_64X64 = 64 * 64 * 3 / 2**20
WANTED = np.array([0, 1, 7, 40, 41, 77, 118, 119])  # first and last frame, neighbours, far apart


def frames_of(data, wanted, *, codec, num_frames, chunk_frames=3, device="cpu"):
    """Decoded frames as one array (F, H, W, 3). chunk_frames: of 64x64 pixels."""
    chunks = decode_frames(
        data,
        np.asarray(wanted),
        codec=codec,
        num_frames=num_frames,
        device=device,
        decode_chunk_mib=chunk_frames * MIB_OF_64X64,
    )
    return np.concatenate([chunk.cpu().numpy().copy() for chunk in chunks])


def difference(first, second):
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.fixture(scope="module")
def vp9() -> bytes:
    return painted_video(120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "codec", "container", "first_pts"),
    [
        ("libvpx-vp9", "vp9", "mp4", 0),
        ("libvpx-vp9", "vp9", "mp4", 37),
        ("libvpx-vp9", "vp9", "webm", 37),
        ("libvpx", "vp8", "webm", 0),
        ("mjpeg", "mjpeg", "matroska", 37),
        ("libx264", "h264", "mp4", 0),
        ("libx264", "h264", "mp4", 37),
        ("libx264", "h264", "matroska", 37),
        ("libx265", "hevc", "mp4", 37),
        ("mpeg4", "mpeg4", "avi", 0),
        ("mpeg4", "mpeg4", "mp4", 37),
    ],
)
def test_every_number_gives_its_own_frame(encoder, codec, container, first_pts):
    pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
    options = {"codec": encoder, "container": container, "first_pts": first_pts, "pix_fmt": pix_fmt}
    data = painted_video(120, **options)
    frames = frames_of(data, WANTED, codec=codec, num_frames=120)
    assert [number_of(frame) for frame in frames] == WANTED.tolist()
    assert difference(frames, frames_of(data, WANTED, codec=PYAV, num_frames=120)) == 0


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    [
        ("libx264", {"x264-params": "scenecut=0:open-gop=1:bframes=3:ref=4"}),
        ("libx265", {"x265-params": "scenecut=0:open-gop=1:bframes=4:log-level=none"}),
    ],
)
def test_b_frames_of_an_open_gop_are_reached_through_the_key_frame_before(encoder, parameters):
    data = painted_video(120, codec=encoder, options=parameters)
    with open_packets(data, 120) as video:
        assert video.reordered
        for number in range(120):  # the first packet shows a frame no later than the one that needs it
            ((first, _),) = packet_runs(video, np.array([number]))
            assert video.packets[first].pts <= video.pts(number)
    frames = frames_of(data, range(120), codec=PYAV, num_frames=120)
    assert [number_of(frame) for frame in frames] == list(range(120))
    for number in range(1, 120, 7):
        alone = frames_of(data, [number], codec=PYAV, num_frames=120)
        assert difference(alone[0], frames[number]) == 0


@pytest.mark.parametrize("codec", ["vp9", PYAV])
def test_chunks_do_not_change_the_pixels(vp9, codec):
    whole = frames_of(vp9, range(120), codec=codec, num_frames=120, chunk_frames=512)
    assert len(whole) == 120
    for chunk_frames in (1, 7):
        wanted = range(3, 120, 5)
        chunks = frames_of(vp9, wanted, codec=codec, num_frames=120, chunk_frames=chunk_frames)
        assert difference(chunks, whole[list(wanted)]) == 0


def test_a_cut_holds_only_the_packets_up_to_the_frame(vp9):
    with open_packets(vp9, 120) as video:
        data, numbers = cut(video, np.array([70, 71, 100]))  # key frames at 64 and 96
        assert numbers.tolist() == [6, 7, 12]
        with av.open(io.BytesIO(data)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8 + 5
        assert cut(video, np.array([0, 15]))[0] is vp9


def random_video(color_range, colorspace, pix_fmt):
    """Lossless noise tagged as asked. (Outside [32, 224] libswscale overflows for 4:2:2 and 4:4:4.)"""
    random, frames = np.random.default_rng(0), []
    for _ in range(4):
        frame = av.VideoFrame(64, 48, pix_fmt)
        for plane in frame.planes:
            plane.update(random.integers(32, 225, plane.buffer_size, dtype=np.uint8).tobytes())
        frame.color_range, frame.colorspace = color_range, colorspace
        frames.append(frame)
    return encode(frames, options={"lossless": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709, BT2020])
def test_both_decoders_give_equal_colours(color_range, colorspace, pix_fmt):
    """Bit for bit: both call libswscale with the same flags, BT.601 whatever the file says, and its range."""
    data = random_video(color_range, colorspace, pix_fmt)
    through = [frames_of(data, range(4), codec=codec, num_frames=4) for codec in ("vp9", PYAV)]
    assert difference(*through) == 0
    want = bt601(data, full_range=color_range == ColorRange.JPEG)
    assert difference(through[0][:1], want) <= 1  # libswscale computes in fixed point


def bt601(data, *, full_range):
    """The first frame by the formula: chroma bilinear between pixel centres, BT.601. Returns (1, H, W, 3)."""
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    y, u, v = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(float)
        for plane in frame.planes
    )
    u, v = (stretch(stretch(plane, y.shape[0]).T, y.shape[1]).T - 128 for plane in (u, v))
    if not full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=-1)
    return np.clip(np.floor(rgb + 0.5), 0, 255)[None]


def stretch(rows, size):
    """Bilinear interpolation of rows (n, m) to (size, m), both sampled at the centres of equal cells."""
    at = np.clip((np.arange(size) + 0.5) * len(rows) / size - 0.5, 0, len(rows) - 1)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(rows) - 1), (at - low)[:, None]
    return rows[low] * (1 - part) + rows[high] * part


REAL = [
    ("torchcodec_testsrc2_vp9.webm", "vp9", 30),
    ("torchcodec_testsrc2_vp8.webm", "vp8", 30),
    ("torchcodec_testsrc2_odd_height_and_width_vp9.mp4", "vp9", 25),
    ("torchcodec_testsrc2_odd_width_vp9.mp4", "vp9", 25),
    ("mmaction2_demo.mp4", "h264", 280),
    ("mmaction2_test.mp4", "h264", 300),
    ("decord_unordered.mov", "h264", 4),
    ("decord_video_180.mov", "h264", 3),
    ("decord_flipping_a_pancake.mkv", "h264", 310),
    ("torchcodec_nasa_13013.mp4", "h264", 325),
    ("torchcodec_bt601_limited_range.mp4", "h264", 60),
    ("torchcodec_bt709_full_range.mp4", "h264", 30),
    ("torchcodec_h264_10bits.mp4", "h264", 30),
    ("torchcodec_h265_10bits.mp4", "hevc", 30),
    ("torchcodec_h265_video.mp4", "hevc", 10),
    ("torchcodec_nasa_13013_hdr.mp4", "hevc", 325),
    ("torchcodec_av1_video.mkv", "av1", 125),
    ("mmaction2_test.avi", "mpeg4", 164),
    ("torchcodec_testsrc2_mpeg4.avi", "mpeg4", 30),
    ("torchcodec_testsrc2_mpeg4.mp4", "mpeg4", 1),
    ("torchcodec_testsrc2_odd_height_and_width_mpeg2.mp4", "mpeg2video", 10),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "num_frames"), REAL)
def test_real_files_give_the_same_frames_by_jumping_as_from_the_start(shared_real, name, codec, num_frames):
    data = (shared_real / "videos" / name).read_bytes()
    wanted = sorted({0, num_frames // 3, num_frames // 2 + 1, num_frames - 1} & set(range(num_frames)))
    got = frames_of(data, wanted, codec=codec, num_frames=num_frames)
    want = from_start(data, wanted)
    assert got.shape == want.shape
    assert difference(got, want) == 0  # the same decoder, or (VP8, VP9) the same arithmetic in DALI


def from_start(data, wanted):
    """What plain PyAV decodes, counted from the first frame; a slow and obvious reference."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack(
            [
                np.stack(_to_rgb(frame, VideoReformatter()), axis=-1)
                for number, frame in enumerate(container.decode(video=0))
                if number in wanted
            ]
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "full_range"),
    [
        ("torchcodec_testsrc2.mp4", "h264", False),  # says that chroma lies to the left: ignored, as by DALI
        ("torchcodec_bt709_full_range.mp4", "h264", True),  # says BT.709: ignored, as by DALI
        ("mmaction2_test.avi", "mpeg4", False),
        ("torchcodec_testsrc2_vp9.webm", "vp9", False),
    ],
)
def test_real_files_follow_the_colour_formula(shared_real, name, codec, full_range):
    data = (shared_real / "videos" / name).read_bytes()
    num_frames = next(entry[2] for entry in [*REAL, ("torchcodec_testsrc2.mp4", "", 60)] if entry[0] == name)
    got = frames_of(data, [0], codec=codec, num_frames=num_frames)
    assert difference(got, bt601(data, full_range=full_range)) <= 1  # libswscale computes in fixed point


@pytest.mark.parametrize("codec", ["vp9", PYAV])
def test_a_frame_past_the_end_is_an_error_and_not_black(vp9, codec):
    with pytest.raises(ValueError, match="119 to 120 asked of a video of 120 frames"):
        frames_of(vp9, [119, 120], codec=codec, num_frames=120)
    with pytest.raises(ValueError, match="frame 120 is missing"):  # the data set promises more than there is
        frames_of(vp9, [119, 120, 121], codec=codec, num_frames=130)


def test_dali_itself_refuses_a_frame_past_the_end(vp9):
    with pytest.raises(ValueError, match="out-of-bounds frame index 120"):
        DaliDecoder(torch.device("cpu")).decode(vp9, np.array([119, 120]))


@pytest.mark.parametrize("codec", ["vp9", PYAV])
def test_broken_bytes_are_an_error_and_the_next_video_decodes(vp9, codec):
    broken = bytearray(vp9)
    for at in range(2000, len(vp9) - 4000, 97):
        broken[at] ^= 0x5A
    for data in (bytes(broken), vp9[: len(vp9) // 2], b"no video at all" * 100):
        with pytest.raises(ValueError) as error:
            frames_of(data, range(120), codec=codec, num_frames=120, chunk_frames=50)
        assert "\n" not in str(error.value)
        frames = frames_of(vp9, WANTED, codec=codec, num_frames=120)
        assert [number_of(frame) for frame in frames] == WANTED.tolist()


def test_a_corrupted_real_file_is_an_error(shared_real):
    data = (shared_real / "videos" / "decord_corrupted.mp4").read_bytes()
    with pytest.raises(ValueError, match="cannot be decoded"):
        frames_of(data, [0, 48], codec="h264", num_frames=50)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("encoder", "codec"), [("libvpx-vp9", "vp9"), ("libx264", "h264"), ("libx265", "hevc")]
)
def test_the_gpu_decodes_the_same_frames_and_pixels(encoder, codec):
    data = painted_video(120, size=(144, 176), codec=encoder)
    here = frames_of(data, WANTED, codec=codec, num_frames=120)
    there = frames_of(data, WANTED, codec=codec, num_frames=120, device="cuda")
    assert [number_of(frame) for frame in there] == WANTED.tolist()
    # both: BT.601, chroma bilinear between pixel centres; the GPU rounds chroma to 8 bit before the matrix,
    # which multiplies that half step by up to 2.02, and libswscale's fixed point adds 1
    assert difference(here, there) <= 3


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
@pytest.mark.parametrize("size", [(2, 2), (64, 48), (63, 48), (62, 47), (130, 98), (176, 128)])
@pytest.mark.parametrize("color_range", [ColorRange.UNSPECIFIED, ColorRange.MPEG, ColorRange.JPEG])
def test_frames_converted_in_planes_have_the_pixels_of_those_converted_at_once(pixels, size, color_range):
    rng = np.random.default_rng(0)
    frame = av.VideoFrame(*size, pixels)
    frame.color_range = color_range
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    rgb = VideoReformatter().reformat(
        frame,
        format="rgb24",
        interpolation=RGB_FLAGS,
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        threads=1,
    )
    assert (np.stack(_to_rgb(frame, VideoReformatter()), axis=-1) == rgb.to_ndarray()).all()
