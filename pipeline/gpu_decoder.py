"""The video decoder of one NVIDIA GPU: what its driver states, and one try for each format of video."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache

import torch

from .gpu_formats import CODECS, DriverLimits, StreamFormat, refusal_by_any_gpu, refusal_by_driver

LIBRARY = "libnvcuvid.so.1"
CHROMA_420 = 1  # NVIDIA's number


class GpuDecoderError(ValueError):
    """The GPU's decoder does not decode a video; the message is the reason alone."""


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h."""

    _fields_ = [
        ("eCodecType", ctypes.c_int),
        ("eChromaFormat", ctypes.c_int),
        ("nBitDepthMinus8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("bIsSupported", ctypes.c_ubyte),
        ("nNumNVDECs", ctypes.c_ubyte),
        ("nOutputFormatMask", ctypes.c_ushort),
        ("nMaxWidth", ctypes.c_uint),
        ("nMaxHeight", ctypes.c_uint),
        ("nMaxMBCount", ctypes.c_uint),
        ("nMinWidth", ctypes.c_ushort),
        ("nMinHeight", ctypes.c_ushort),
        ("bIsHistogramSupported", ctypes.c_ubyte),
        ("nCounterBitDepth", ctypes.c_ubyte),
        ("nMaxHistogramBins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    ]


@cache
def driver_limits(codec: str, bits: int, device: torch.device) -> DriverLimits:
    """Ask the driver of 4:2:0 video. Raises GpuDecoderError where its library is missing or answers nothing.

    device: a GPU, with its index.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise GpuDecoderError(
            f"the driver's video library is missing ({error}), see leantad doctor"
        ) from None
    caps = _DecodeCaps(CODECS[codec][0], CHROMA_420, bits - 8)
    with torch.cuda.device(device):
        torch.empty(1, device=device)  # makes the GPU's context this thread's, which the library asks for
        code = library.cuvidGetDecoderCaps(ctypes.byref(caps))
    if code:
        raise GpuDecoderError(f"{LIBRARY} does not state what the GPU decodes (error {code})")
    return DriverLimits(
        bool(caps.bIsSupported),
        caps.nNumNVDECs,
        caps.nMinWidth,
        caps.nMinHeight,
        caps.nMaxWidth,
        caps.nMaxHeight,
        caps.nMaxMBCount,
    )


class GpuDecoder:
    """The decoder of one GPU, and what was found out about it, once for all threads of a process."""

    def __init__(self, device: torch.device):
        self.device = device
        self._lock = threading.Lock()
        self._tried: dict[StreamFormat, str | None] = {}

    def num_decoders(self) -> int:
        """Decoder units of the chip, at least 1; 1 where the driver states none."""
        try:
            return max(1, driver_limits("h264", 8, self.device).num_decoders)
        except GpuDecoderError:
            return 1

    def refusal(self, format: StreamFormat) -> str | None:
        """Why the GPU does not decode a format, by the rules and its driver; None: it should."""
        known = refusal_by_any_gpu(format)
        if known is not None:
            return known
        assert format.bits is not None
        try:
            return refusal_by_driver(format, driver_limits(format.codec, format.bits, self.device))
        except GpuDecoderError as error:
            return str(error)

    def refusal_after_try(self, format: StreamFormat, attempt: Callable[[], str | None]) -> str | None:
        """Why the GPU does not decode a format that no rule refuses; None: it does.

        attempt: decodes a video of it, returns why that failed. It is called once per format, unless it
        raises: then the video is to blame.
        """
        with self._lock:
            if format not in self._tried:
                self._tried[format] = attempt()
            return self._tried[format]


@cache
def gpu_decoder_of(device: torch.device) -> GpuDecoder:
    """The one GpuDecoder of a GPU. device: with its index."""
    return GpuDecoder(device)
