"""The driver's answers: asked once, missing or refusing libraries are a reason and no crash."""

from __future__ import annotations

import contextlib
from ctypes import sizeof

import pytest
import torch

from pipeline import gpu_decoder
from pipeline.gpu_decoder import GpuDecoder, GpuDecoderError, driver_limits
from pipeline.gpu_formats import StreamFormat

GPU = torch.device("cuda", 0)


class Library:
    """libnvcuvid with the answer of an H200 for VP9, or an error code."""

    def __init__(self, code: int = 0):
        self.code, self.asked = code, []

    def cuvidGetDecoderCaps(self, pointer):
        caps = pointer._obj
        self.asked.append((caps.eCodecType, caps.eChromaFormat, caps.nBitDepthMinus8))
        caps.bIsSupported, caps.nNumNVDECs = 1, 7
        caps.nMinWidth = caps.nMinHeight = 128
        caps.nMaxWidth = caps.nMaxHeight = 8192
        caps.nMaxMBCount = 262144
        return self.code


@pytest.fixture
def library(monkeypatch):
    def install(found):
        def load(name):
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(gpu_decoder.ctypes, "CDLL", load)
        monkeypatch.setattr(gpu_decoder.torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(gpu_decoder.torch, "empty", lambda *shape, device: None)
        driver_limits.cache_clear()
        return found

    yield install
    driver_limits.cache_clear()


def test_the_structure_is_that_of_cuviddec_h():
    """CUVIDDECODECAPS, field by field, with what the compiler adds nowhere."""
    assert sizeof(gpu_decoder._DecodeCaps) == 12 + 12 + 4 + 12 + 4 + 4 + 40


def test_the_driver_is_asked_once_for_each_codec_and_depth(library):
    asked = library(Library()).asked
    for _ in range(2):
        limits = driver_limits("vp9", 10, GPU)
        assert (limits.is_supported, limits.num_decoders, limits.min_width, limits.max_width) == (
            True,
            7,
            128,
            8192,
        )
        driver_limits("vp9", 8, GPU)
    assert asked == [(10, 1, 2), (10, 1, 0)]
    assert GpuDecoder(GPU).num_decoders() == 7


def test_without_the_library_everything_goes_to_the_cpu_with_the_reason(library):
    library(OSError("libnvcuvid.so.1: cannot open shared object file"))
    gpu = GpuDecoder(GPU)
    assert gpu.num_decoders() == 1
    reason = gpu.refusal(StreamFormat("vp9", 640, 480, "yuv420p"))
    assert reason.startswith("the driver's video library is missing (libnvcuvid.so.1")


def test_a_driver_that_refuses_to_answer_is_a_reason(library):
    library(Library(code=999))
    with pytest.raises(GpuDecoderError, match="does not state what the GPU decodes .error 999."):
        driver_limits("vp9", 8, GPU)


def test_an_attempt_that_raises_is_made_again_and_others_are_not():
    gpu, calls, format = GpuDecoder(GPU), [], StreamFormat("vp9", 640, 480, "yuv420p")

    def attempt(answer):
        calls.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="broken video"):
        gpu.refusal_after_try(format, lambda: attempt(ValueError("broken video")))
    for _ in range(3):
        assert gpu.refusal_after_try(format, lambda: attempt("no AV1")) == "no AV1"
    assert gpu.refusal_after_try(format._replace(width=320), lambda: attempt(None)) is None
    assert len(calls) == 3
