"""A stand-in for the decoder of an H200, behind the class that runs DALI: its limits and its errors.

It decodes on the CPU what NVDEC decodes, one level off as NVDEC is, and raises DALI's RuntimeError for the
rest, one text per kind, as measured with driver 580.159 and DALI 2.4. What NVDEC decodes to wrong pixels
without an error comes back black.
"""

from __future__ import annotations

import io
import threading
import weakref

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from pipeline import clip_decoder, decode, gpu_decoder
from pipeline.gpu_decoder import GpuDecoder
from pipeline.gpu_formats import DriverLimits
from pipeline.packets import _to_rgb

GPU = torch.device("cuda", 0)
NONE = DriverLimits(False, 0, 0, 0, 0, 0, 0)
# (codec, bits) -> limits of 4:2:0, from cuvidGetDecoderCaps
H200 = {
    ("mpeg4", 8): DriverLimits(True, 7, 48, 16, 2032, 2032, 8192),
    ("h264", 8): DriverLimits(True, 7, 48, 16, 4096, 4096, 65536),
    ("hevc", 8): DriverLimits(True, 7, 144, 144, 8192, 8192, 262144),
    ("hevc", 10): DriverLimits(True, 7, 144, 144, 8192, 8192, 262144),
    ("vp8", 8): DriverLimits(True, 7, 48, 16, 4096, 4096, 65536),
    ("vp9", 8): DriverLimits(True, 7, 128, 128, 8192, 8192, 262144),
    ("vp9", 10): DriverLimits(True, 7, 128, 128, 8192, 8192, 262144),
}
DALI_ERROR = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.video`,
which was used in the pipeline definition with the following traceback:

encountered:

{}
Current pipeline object is no longer valid."""
SUBSAMPLING = {"yuv420p": "4:2:0", "yuvj420p": "4:2:0", "yuv420p10le": "4:2:0"}
CODEC_IDS = {"mjpeg": 7, "mpeg2video": 2}


class Nvdec:
    """What the decoders share. calls: (codec, width, height) of each; sessions: open now, and at most."""

    def __init__(self, max_sessions: int = 32):
        self.max_sessions, self.lock = max_sessions, threading.Lock()
        self.calls: list[tuple[str, int, int]] = []
        self.sessions = self.most_sessions = 0
        self.bytes = self.most_bytes = 0  # of frames that it handed out and that are still held

    def fail(self, reason: str) -> RuntimeError:
        return RuntimeError(DALI_ERROR.format(reason))


def refuse(nvdec: Nvdec, codec: str, context: av.VideoCodecContext) -> None:
    """Raise what DALI raises for what NVDEC does not take."""
    if codec in CODEC_IDS:
        raise nvdec.fail(
            f"Codec {CODEC_IDS[codec]} ({codec}) is not supported by the GPU variant of this operator."
        )
    if codec == "av1":
        raise nvdec.fail("Codec av1 is not supported by NVDEC on this platform.")
    bits = 10 if "10" in context.pix_fmt else 8
    limits = H200.get((codec, bits), NONE)
    if not limits.is_supported:
        raise nvdec.fail(
            'Assert on "caps.bIsSupported" failed: Codec configuration not supported on this GPU. '
            f"Codec: {codec}, chroma format: YUV 4:2:0, bit depth: {bits}"
        )
    sizes = f"Provided: {context.width}x{context.height} vs supported:"
    if context.width < limits.min_width or context.height < limits.min_height:
        raise nvdec.fail(
            'Assert on "width >= caps.nMinWidth && height >= caps.nMinHeight" failed: Video is too small in '
            f"at least one dimension. {sizes}{limits.min_width}x{limits.min_height}"
        )
    if context.width > limits.max_width or context.height > limits.max_height:
        raise nvdec.fail(
            'Assert on "width <= caps.nMaxWidth && height <= caps.nMaxHeight" failed: Video is too large in '
            f"at least one dimension. {sizes}{limits.max_width}x{limits.max_height}"
        )


class _Output(list):
    """DALI's list of outputs."""


class NvdecDecoder(decode.DaliDecoder):
    """In place of DaliDecoder: as it on a CPU; for a GPU the stand-in, whose frames lie on the CPU."""

    nvdec = Nvdec()

    def __init__(self, device: torch.device):
        if device.type == "cpu":
            super().__init__(device)
            return
        self.device, self.failed, self.is_open = device, False, False
        self.pipeline = self

    def feed_input(self, name, data):
        setattr(self, name, data[0])

    def run(self, stream):
        """What DALI's pipeline does: the first time it opens a session, which it keeps until it fails."""
        nvdec = self.nvdec
        with nvdec.lock:
            if not self.is_open and nvdec.sessions >= nvdec.max_sessions:
                raise nvdec.fail(
                    'Assert on "frames_decoders_[s]->IsValid()" failed: Failed to create video decoder'
                )
            nvdec.sessions += not self.is_open
            nvdec.most_sessions = max(nvdec.most_sessions, nvdec.sessions)
            self.is_open = True
        try:
            return (_Output([self._decoded()]),)
        except Exception as error:
            with nvdec.lock:
                nvdec.sessions -= 1
            raise error if isinstance(error, RuntimeError) else nvdec.fail(str(error)) from error

    def _decoded(self) -> torch.Tensor:
        with av.open(io.BytesIO(self.encoded.tobytes())) as container:
            stream = container.streams.video[-1]  # of several streams DALI takes another than PyAV
            context = stream.codec_context
            codec = stream.codec_context.codec.canonical_name
            self.nvdec.calls.append((codec, context.width, context.height))
            refuse(self.nvdec, codec, context)
            wrong = context.pix_fmt not in SUBSAMPLING or context.width % 2 or context.height % 2
            wanted, shown = set(self.numbers.tolist()), []
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    shown.append(np.stack(_to_rgb(frame, VideoReformatter()), axis=-1))
        if len(shown) < len(wanted):
            raise self.nvdec.fail(f"Unexpected out-of-bounds frame index {max(wanted)}")
        frames = np.stack(shown)
        frames = np.zeros_like(frames) if wrong else np.where(frames < 255, frames + 1, frames)
        return self._counted(frames.astype(np.uint8))

    def _counted(self, frames: np.ndarray) -> torch.Tensor:
        """The frames as a tensor whose bytes are counted for as long as it lives."""
        nvdec, size = self.nvdec, frames.nbytes

        def release():
            with nvdec.lock:
                nvdec.bytes -= size

        with nvdec.lock:
            nvdec.bytes += size
            nvdec.most_bytes = max(nvdec.most_bytes, nvdec.bytes)
        weakref.finalize(frames, release)
        return torch.from_numpy(frames)

    def _stream(self):
        return None


def install(monkeypatch, *, limits=H200, max_sessions: int = 32) -> Nvdec:
    """Let loaders for the CPU decode as if they were on an H200; returns what is counted there."""
    nvdec = Nvdec(max_sessions)
    gpu = GpuDecoder(GPU)
    monkeypatch.setattr(NvdecDecoder, "nvdec", nvdec)
    monkeypatch.setattr(decode, "DaliDecoder", NvdecDecoder)
    monkeypatch.setattr(decode, "_idle", {})
    monkeypatch.setattr(
        gpu_decoder, "driver_limits", lambda codec, bits, device: limits.get((codec, bits), NONE)
    )
    monkeypatch.setattr(
        clip_decoder, "gpu_decoder_for", lambda settings, device: None if settings.decoder == "cpu" else gpu
    )
    return nvdec
