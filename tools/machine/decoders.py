"""Checks the video decoders: a second of each codec through the training decoder, pixels compared."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from typing import Any

from pipeline.text import counted
from tools.machine.checks import BROKEN, OK, WARNING, CheckResult, error_text

# Encoder of PyAV, container, options. Pictures are large enough for every NVDEC (VP9 and HEVC: 144 pixels).
CLIPS: dict[str, tuple[str, str, dict[str, str]]] = {
    "vp9": ("libvpx-vp9", "mp4", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}),
    "h264": ("libx264", "mp4", {"preset": "veryfast", "crf": "18", "bf": "2"}),
    "hevc": ("libx265", "mp4", {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none"}),
    "av1": ("libsvtav1", "mp4", {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}),
    "vp8": ("libvpx", "matroska", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "2M"}),
    "mpeg4": ("mpeg4", "mp4", {"qscale": "3"}),
    "mjpeg": ("mjpeg", "matroska", {"qscale": "3"}),
    "mpeg2video": ("mpeg2video", "matroska", {"qscale": "3"}),
}
HEIGHT, WIDTH, FRAMES = 160, 192, 24
PACKED = ("vp9", "h264")  # what make-shards writes
REINSTALL = "reinstall nvidia-dali and av in the versions of constraints.txt; on a GPU see NVDEC above"


def picture(number: int, width: int, height: int) -> Any:
    """Picture `number` of a test clip, (H, W, 3) uint8: smooth, 6 levels brighter each time, 24 times."""
    import numpy as np

    rows, columns = np.mgrid[0:height, 0:width]
    grey = 30 + 40 * rows / height + 20 * columns / width + 6 * (number % FRAMES)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def encode_clip(
    codec: str, *, size: tuple[int, int] = (WIDTH, HEIGHT), num_frames: int = FRAMES
) -> bytes | None:
    """Test pictures, 24 a second, or None where PyAV has no encoder. size: width and height, even.

    For root SVT-AV1 makes its caller a real-time thread, which starves whatever that starts later: encoded in
    a thread of its own.
    """
    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(_encode, codec, size, num_frames).result()


def _encode(codec: str, size: tuple[int, int], num_frames: int) -> bytes | None:
    import av
    from av.codec.codec import UnknownCodecError

    encoder, container, options = CLIPS[codec]
    try:
        av.codec.Codec(encoder, "w")
    except UnknownCodecError:
        return None
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(encoder, rate=FRAMES, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=stream.pix_fmt, threads=1)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def decode_error(data: bytes, device: str) -> tuple[float, str]:
    """Decode every third picture by one device: (largest mean difference in levels, decoder's name).

    The difference is to PyAV's own conversion, frame by frame: a wrong frame differs by 6 levels or more.
    """
    import av
    import numpy as np

    from pipeline.decode import CPU_CODECS, decode_frames

    with av.open(io.BytesIO(data), "r") as container:
        name = container.streams.video[0].codec_context.name
        shown = [
            frame.to_ndarray(format="rgb24", threads=1).astype(float) for frame in container.decode(video=0)
        ]
    wanted = np.arange(0, len(shown), 3)
    parts = [
        part.cpu().numpy().copy()
        for part in decode_frames(
            data, wanted, codec=name, num_frames=len(shown), device=device, decode_chunk_mib=6
        )
    ]
    decoded = np.concatenate(parts).astype(float)
    error = max(float(abs(image - shown[i]).mean()) for image, i in zip(decoded, wanted, strict=True))
    return error, "DALI" if device != "cpu" or name in CPU_CODECS else "PyAV"


def gpu_refusal(data: bytes, codec: str, *, num_frames: int = FRAMES) -> str | None:
    """Why training leaves a clip to the CPU although there is a GPU; None: the GPU decodes it."""
    import torch

    from pipeline.decode import with_index
    from pipeline.gpu_decoder import gpu_decoder_of
    from pipeline.gpu_formats import format_of
    from pipeline.packets import open_packets

    with open_packets(data, num_frames) as video:
        return gpu_decoder_of(with_index(torch.device("cuda"))).refusal(format_of(video, codec))


def try_codec(codec: str, device: str) -> CheckResult:
    """Encode and decode a clip; what a failure means depends on whether make-shards writes this codec."""
    where = f"decode {codec} on {device}"
    try:
        data = encode_clip(codec)
        if data is None:
            text = f"{where}: not tried, PyAV has no {CLIPS[codec][0]} here"
            return CheckResult(BROKEN, text, REINSTALL) if codec in PACKED else CheckResult(OK, text)
        if device != "cpu" and (reason := gpu_refusal(data, codec)):
            return CheckResult(OK, f"{where}: left to the CPU: {reason}")
        error, decoder = decode_error(data, device)
    except Exception as failure:  # the next codec may work all the same
        if codec in PACKED:
            return CheckResult(BROKEN, f"{where}: {error_text(failure)}", REINSTALL)
        return CheckResult(WARNING, f"{where}: {error_text(failure)}", "pack such videos without --copy")
    # Rounding and chroma interpolation differ between decoders by under 2 levels on these grey pictures.
    good = error < 2.5
    todo = "" if good else "the decoder shows other frames or colours; report it with this line"
    return CheckResult(OK if good else BROKEN, f"{where}: by {decoder}, off by {error:.2f} levels", todo)


def gpu_limits() -> Iterator[CheckResult]:
    """What the driver states of each codec that the GPU may decode; everything else the CPU decodes."""
    import torch

    from pipeline.decode import with_index
    from pipeline.gpu_decoder import GpuDecoderError, driver_limits
    from pipeline.gpu_formats import CODECS

    device = with_index(torch.device("cuda"))
    try:
        for codec in CODECS:
            found = {bits: driver_limits(codec, bits, device) for bits in (8, 10)}
            bits = [depth for depth, limits in found.items() if limits.is_supported]
            if not bits:
                yield CheckResult(OK, f"NVDEC: no {codec} on this GPU: the CPU decodes it")
                continue
            least = found[bits[0]]
            sizes = f"{least.min_width}x{least.min_height} to {least.max_width}x{least.max_height}"
            depths, decoders = " and ".join(map(str, bits)), counted(least.num_decoders, "decoder")
            yield CheckResult(OK, f"NVDEC: {codec} 4:2:0 of {depths} bit, {sizes}, {decoders}")
    except GpuDecoderError as error:
        yield CheckResult(WARNING, f"NVDEC: {error}: the CPU decodes all videos", "see NVDEC above")


def check_decode() -> Iterator[CheckResult]:
    """The decoders, and a one-second clip of each codec on the CPU and on the GPU if there is one."""
    import av
    import torch

    import pipeline.decode  # noqa: F401 - DALI's import is the first thing that can fail

    dali = next((item for item in distributions() if item.metadata["Name"].startswith("nvidia-dali")), None)
    yield CheckResult(OK, f"DALI {dali.version if dali else '?'}, PyAV {av.__version__}: imported")
    if torch.cuda.is_available():
        yield from gpu_limits()
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for codec in CLIPS:
            yield try_codec(codec, device)
