"""Decodes the frames of clips to uint8 tensors on the device: by DALI where it can, else by PyAV.

The frames that clips ask for are sorted, each is decoded once, in bounded chunks, resized and cropped at once
and put into every clip that shows it. Both decoders give RGB at the source's size and share all that follows,
so training, evaluation and prediction see the same pixels.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType
from torch.utils.dlpack import from_dlpack

from .augment import View, apply_view
from .packets import Packets, cut, decode_by_av, open_packets

# fn.decoders.video of DALI 2.4; the names are FFmpeg's, "libdav1d" is PyAV's name for AV1.
CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "mpeg4", "av1", "libdav1d"}

# A built pipeline per thread and device: building one takes 5 ms, as long as 70 frames.
_local = threading.local()


class _Pipeline(Protocol):
    """What is used of DALI's Pipeline, which has no types of its own."""

    def feed_input(self, name: str, data: list[NDArray[Any]]) -> None: ...

    def run(self, stream: torch.cuda.Stream | None) -> tuple[Sequence[Any], ...]: ...

    def set_outputs(self, *outputs: Any) -> None: ...

    def build(self) -> None: ...


def decode_clips(
    data: bytes,
    frames: NDArray[np.int64],
    *,
    codec: str,
    num_frames: int,
    resize: int,
    crop: int,
    view: View,
    device: torch.device | str,
    decode_chunk_frames: int,
) -> torch.Tensor:
    """Decode the clips of one video.

    data: the encoded file. frames: (N, L) frame numbers. codec: its FFmpeg name. num_frames: how many frames
    the video has. resize: short side in pixels. Returns (N, 3, L, crop, crop) uint8 on `device`. At most
    `decode_chunk_frames` frames are held at source size. ValueError if a frame does not exist or cannot be
    decoded.
    """
    wanted, inverse = np.unique(frames, return_inverse=True)
    inverse = inverse.reshape(frames.shape)
    clips = torch.empty((*frames.shape, 3, crop, crop), dtype=torch.uint8, device=device)  # (N, L, C, H, W)
    clips = clips.permute(0, 2, 1, 3, 4).contiguous()  # (N, C, L, H, W)
    by_frame = clips.permute(0, 2, 1, 3, 4)
    done = 0
    for chunk in decode_frames(
        data,
        wanted,
        codec=codec,
        num_frames=num_frames,
        device=device,
        decode_chunk_frames=decode_chunk_frames,
    ):
        images = apply_view(chunk, view, resize=resize, crop=crop)  # (F, C, H, W)
        clip, position = np.nonzero((inverse >= done) & (inverse < done + len(chunk)))
        source = torch.from_numpy(inverse[clip, position] - done).to(images.device)
        by_frame[torch.from_numpy(clip), torch.from_numpy(position)] = images[source]
        done += len(chunk)
        del chunk, images  # or two chunks would be held while the next is decoded
    return clips


def decode_frames(
    data: bytes,
    wanted: NDArray[np.int64],
    *,
    codec: str,
    num_frames: int,
    device: torch.device | str,
    decode_chunk_frames: int,
) -> Iterator[torch.Tensor]:
    """Decode the frames `wanted` (rising, each once), chunk by chunk.

    Yields (F, H, W, 3) uint8 RGB on `device`, F at most `decode_chunk_frames`; a chunk is valid until the
    next one.
    """
    device = torch.device(device)
    # DALI would give a black picture for a frame past the end
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < num_frames:
        raise ValueError(f"frames {wanted[0]} to {wanted[-1]} asked of a video of {num_frames} frames")
    with open_packets(data, num_frames) as video:
        codecs = CPU_CODECS if device.type == "cpu" else GPU_CODECS
        if codec in codecs and video.packet_indices is not None:
            yield from _decode_by_dali(video, wanted, device, decode_chunk_frames)
            return
        arrays = decode_by_av(video, wanted)
        for start in range(0, len(wanted), decode_chunk_frames):
            yield _stack(arrays, min(decode_chunk_frames, len(wanted) - start)).to(device)


def _stack(arrays: Iterator[NDArray[np.uint8]], count: int) -> torch.Tensor:
    """The next `count` frames as one tensor; np.stack of a list would hold them twice."""
    first = next(arrays)
    chunk = np.empty((count, *first.shape), dtype=np.uint8)
    for number, frame in enumerate(itertools.chain([first], itertools.islice(arrays, count - 1))):
        if frame.shape != first.shape:
            raise ValueError(
                f"the picture size changes from {first.shape[:2]} to {frame.shape[:2]}; pack it again"
            )
        chunk[number] = frame
    return torch.from_numpy(chunk)


def _decode_by_dali(
    video: Packets, wanted: NDArray[np.int64], device: torch.device, decode_chunk_frames: int
) -> Iterator[torch.Tensor]:
    for start in range(0, len(wanted), decode_chunk_frames):
        numbers = wanted[start : start + decode_chunk_frames]
        # Cutting a video with B-frames would rest on how NVDEC reorders; those are decoded from their start.
        data, numbers = (video.data, numbers) if video.reordered else cut(video, numbers)
        yield _run_dali(data, numbers, device)
        if device.type == "cuda":  # DALI may reuse the memory on a stream of its own
            torch.cuda.current_stream(device).synchronize()


def _run_dali(data: bytes, numbers: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Frames `numbers` of `data`: (F, H, W, 3) uint8, in DALI's memory until the next call."""
    try:
        pipeline = _pipeline_of(device)
        pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
        pipeline.feed_input("numbers", [numbers.astype(np.int32)])
        # on a GPU the output is bound to torch's stream, so what follows need not wait for the host
        (output,) = pipeline.run(torch.cuda.current_stream(device) if device.type == "cuda" else None)
    except RuntimeError as error:
        _local.pipelines = {}  # a pipeline that failed must not be used again
        raise ValueError(f"DALI cannot decode it: {_reason(error)}; pack the video again") from error
    frames = from_dlpack(output[0])
    if len(frames) != len(numbers):
        raise ValueError(f"DALI decoded {len(frames)} of {len(numbers)} frames; pack the video again")
    return frames


def _pipeline_of(device: torch.device) -> _Pipeline:
    pipelines: dict[torch.device, _Pipeline] = _local.__dict__.setdefault("pipelines", {})
    if device not in pipelines:
        pipelines[device] = _build_pipeline(device)
    return pipelines[device]


def _build_pipeline(device: torch.device) -> _Pipeline:
    on_gpu = device.type == "cuda"
    device_id = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
    options = {"batch_size": 1, "num_threads": 1, "device_id": device_id, "prefetch_queue_depth": 1}
    pipeline: _Pipeline
    with Pipeline(**options) as pipeline:  # type: ignore[no-untyped-call]  # DALI's class has no types
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=DALIDataType.INT32, ndim=1)
        # pad_mode "none": a frame past the end is an error and not a black picture
        kind = "mixed" if on_gpu else "cpu"
        pipeline.set_outputs(fn.decoders.video(encoded, frames=numbers, device=kind, pad_mode="none"))
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """The line of DALI's long message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    causes = lines[lines.index("encountered:") + 1 :] if "encountered:" in lines else lines
    return next((line for line in causes if line), "no reason given")
