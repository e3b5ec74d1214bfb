"""Decodes frames of a video to RGB at the source's size, chunk by chunk: on a GPU, or on the CPU.

A GPU decodes through DALI; on the CPU DALI does where it has a decoder, else PyAV, with equal pixels. Each
frame is decoded once, in bounded chunks; what is not needed is cut out of the video first.
"""

from __future__ import annotations

import atexit
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType
from torch.utils.dlpack import from_dlpack

from .gpu_decoder import GpuDecoderError
from .packets import Packets, RgbPlanes, cut, decode_by_av, open_packets
from .settings import frames_per_chunk

# fn.decoders.video of DALI 2.4 without a GPU; the names are FFmpeg's
CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
CPU = torch.device("cpu")


class _Pipeline(Protocol):
    """What is used of DALI's Pipeline, which has no types of its own."""

    def feed_input(self, name: str, data: list[NDArray[Any]]) -> None: ...

    def run(self, stream: torch.cuda.Stream | None) -> tuple[Sequence[Any], ...]: ...

    def set_outputs(self, *outputs: Any) -> None: ...

    def build(self) -> None: ...

    def serialize(self) -> bytes: ...


def decode_frames(
    data: bytes,
    wanted: NDArray[np.int64],
    *,
    codec: str,
    num_frames: int,
    device: torch.device | str,
    decode_chunk_mib: float,
) -> Iterator[torch.Tensor]:
    """Decode the frames `wanted` (rising, each once) of an encoded video, chunk by chunk.

    codec: its FFmpeg name. num_frames: how many frames it has. device: whose decoder to use, and no other.
    Yields (F, H, W, 3) uint8 RGB there, at most `decode_chunk_mib` MiB; a chunk is valid until the next one.
    """
    device = with_index(torch.device(device))
    with open_packets(data, num_frames) as video:
        if device.type == "cpu":
            yield from decode_on_cpu(video, wanted, codec=codec, decode_chunk_mib=decode_chunk_mib)
        else:
            yield from decode_on_gpu(video, wanted, device, decode_chunk_mib=decode_chunk_mib)


def decode_on_cpu(
    video: Packets, wanted: NDArray[np.int64], *, codec: str, decode_chunk_mib: float, threads: int = 0
) -> Iterator[torch.Tensor]:
    """Chunks of the `wanted` frames of an open video, as decode_frames. threads: of PyAV's decoder; 0: auto.

    Raises ValueError if a frame does not exist or cannot be decoded.
    """
    _check_numbers(video, wanted)
    if codec in CPU_CODECS and video.packet_indices is not None and video.stream.codec_context.width:
        yield from _decode_by_dali(video, wanted, CPU, decode_chunk_mib)
        return
    frames, done = decode_by_av(video, wanted, threads=threads), 0
    for first in frames:
        height, width = first[0].shape
        count = min(frames_per_chunk(height, width, decode_chunk_mib), len(wanted) - done)
        yield _stack(first, frames, count)
        done += count


def decode_on_gpu(
    video: Packets, wanted: NDArray[np.int64], device: torch.device, *, decode_chunk_mib: float
) -> Iterator[torch.Tensor]:
    """Chunks of the `wanted` frames of an open video, as decode_frames, on the GPU `device`.

    Raises GpuDecoderError if its decoder fails, ValueError if a frame does not exist.
    """
    _check_numbers(video, wanted)
    if video.packet_indices is None:
        raise GpuDecoderError("packets and frames do not match one to one")
    for chunk in _decode_by_dali(video, wanted, device, decode_chunk_mib):
        is_cuda = chunk.is_cuda
        yield chunk
        del chunk  # or two chunks would be held while the next is decoded
        if is_cuda:  # DALI may reuse the memory on a stream of its own
            torch.cuda.current_stream(device).synchronize()


def _check_numbers(video: Packets, wanted: NDArray[np.int64]) -> None:
    # DALI would give a black picture for a frame past the end
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < video.num_frames:
        raise ValueError(f"frames {wanted[0]} to {wanted[-1]} asked of a video of {video.num_frames} frames")


def _stack(first: RgbPlanes, frames: Iterator[RgbPlanes], count: int) -> torch.Tensor:
    """`first` and what follows, (count, H, W, 3), in memory (count, 3, H, W)."""
    size = first[0].shape
    chunk = np.empty((count, 3, *size), dtype=np.uint8)
    for number, planes in enumerate(itertools.chain([first], itertools.islice(frames, count - 1))):
        if planes[0].shape != size:
            raise ValueError(f"the picture size changes from {size} to {planes[0].shape}; pack it again")
        for channel, plane in enumerate(planes):
            chunk[number, channel] = plane
    return torch.from_numpy(chunk).permute(0, 2, 3, 1)


def _decode_by_dali(
    video: Packets, wanted: NDArray[np.int64], device: torch.device, decode_chunk_mib: float
) -> Iterator[torch.Tensor]:
    context = video.stream.codec_context
    count = frames_per_chunk(context.height, context.width, decode_chunk_mib)
    with _lent_decoder(device) as decoder:
        for start in range(0, len(wanted), count):
            yield decoder.decode(*cut(video, wanted[start : start + count]))


# ------------------------------------------------------------------------------------------------- DALI


def define_pipeline(kind: str, device_id: int | None) -> _Pipeline:
    """DALI's graph, not built yet. kind: "cpu" or "mixed" (encoded bytes on the host, frames on the GPU)."""
    options = {"batch_size": 1, "num_threads": 1, "device_id": device_id, "prefetch_queue_depth": 1}
    pipeline: _Pipeline
    with Pipeline(**options) as pipeline:  # type: ignore[no-untyped-call]  # DALI's class has no types
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=DALIDataType.INT32, ndim=1)
        # pad_mode "none": a frame past the end is an error and not a black picture
        pipeline.set_outputs(fn.decoders.video(encoded, frames=numbers, device=kind, pad_mode="none"))
    return pipeline


class DaliDecoder:
    """A built pipeline of DALI, which decodes frames of one video at a time. Building it takes 5 ms."""

    def __init__(self, device: torch.device):
        self.device, self.failed = device, False
        kind = "cpu" if device.type == "cpu" else "mixed"
        self.pipeline = define_pipeline(kind, device.index)
        self.pipeline.build()

    def decode(self, data: bytes, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Frames `numbers` of `data`: (F, H, W, 3) uint8, in DALI's memory until the next call.

        Raises ValueError, on a GPU GpuDecoderError; then it has `failed` and must not be used again.
        """
        on_cpu = self.device.type == "cpu"
        try:
            self.pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
            self.pipeline.feed_input("numbers", [numbers.astype(np.int32)])
            (output,) = self.pipeline.run(self._stream())
        except RuntimeError as error:
            self.failed = True
            reason = _reason(error)
            if not on_cpu:
                raise GpuDecoderError(reason) from error
            raise ValueError(f"DALI cannot decode it: {reason}; pack the video again") from error
        frames = from_dlpack(output[0])
        if len(frames) != len(numbers):
            self.failed = True
            message = f"DALI decoded {len(frames)} of {len(numbers)} frames"
            raise ValueError(f"{message}; pack the video again") if on_cpu else GpuDecoderError(message)
        return frames

    def _stream(self) -> torch.cuda.Stream | None:
        """On a GPU the output is bound to torch's stream, so that what follows need not wait for the host."""
        return None if self.device.type == "cpu" else torch.cuda.current_stream(self.device)


def _reason(error: RuntimeError) -> str:
    """The line of DALI's long message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    causes = lines[lines.index("encountered:") + 1 :] if "encountered:" in lines else lines
    return next((line for line in causes if line), "no reason given")


# Decoders that nobody uses: there are never more of a device than decoded on it at once.
_idle: dict[torch.device, list[DaliDecoder]] = {}
_idle_lock = threading.Lock()


@contextmanager
def _lent_decoder(device: torch.device) -> Iterator[DaliDecoder]:
    """A decoder for as long as its frames are used; kept for the next one unless it failed."""
    with _idle_lock:
        idle = _idle.setdefault(device, [])
        decoder = idle.pop() if idle else None
    decoder = decoder or DaliDecoder(device)
    try:
        yield decoder
    finally:
        if not decoder.failed:
            with _idle_lock:
                idle.append(decoder)


def release_decoders() -> None:
    """Let go of the decoders that nobody uses, with the memory and the sessions that they hold on a GPU."""
    with _idle_lock:
        for idle in _idle.values():
            idle.clear()


atexit.register(release_decoders)  # while CUDA is still there


def with_index(device: torch.device) -> torch.device:
    """A GPU without a number is the current one."""
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, torch.cuda.current_device())
