"""Decodes the clips of videos in several threads: on the GPU what its decoder decodes right, else on the CPU.

The frames that clips ask for are sorted, each is decoded once, in bounded chunks, resized and cropped at once
and put into every clip that shows it. All decoders give RGB at the source's size and share all that follows,
so training, evaluation and prediction see the same pixels. Where threads have nothing else to do, a video is
split where nothing leans on what is before, so the batches do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import View, apply_view
from .decode import decode_on_cpu, decode_on_gpu, release_decoders, with_index
from .gpu_decoder import GpuDecoder, GpuDecoderError, gpu_decoder_of
from .gpu_formats import format_of, packed_format, refusal_of_video, refusal_text, refused_videos
from .packets import Packets, open_packets, split
from .pictures import Pictures, Slots, copy_pictures
from .records import PackedVideo
from .settings import MAX_GPU_WORKERS, MAX_WORKERS, DataSettings
from .text import counted

TRIED_FRAMES = 4  # of a video of each format, which are compared with the CPU's
# Levels of 255. On an H200 what is right is off by at most 7 (MPEG-4), in the mean by 0.8; what is wrong, by
# 196 and 2.7 at least.
MAX_OFF, MEAN_OFF = 24, 2.0


@dataclass(frozen=True)
class ClipRequest:
    """What is to be decoded of one video, for a window's clips or some of their pictures.

    data: its encoded bytes, or those of a part. frames: (F,) frame numbers in them. num_frames: how many
    they hold. pictures: (N, L, 3, crop, crop) uint8. slots: clip and position of each frame, (F,) twice; the
    other pictures stay as they are.
    """

    video: PackedVideo
    data: bytes
    frames: NDArray[np.int64]
    num_frames: int
    view: View
    pictures: Pictures
    slots: Slots


class PendingClips:
    """Clips that are being decoded: by the job that opened the video, and by those that it left parts to."""

    def __init__(self) -> None:
        self.jobs: list[Future[None]] = []

    def wait(self) -> None:
        """Until all are there. Raises ValueError if it is no readable video, or a frame cannot be decoded."""
        wait(self.jobs)  # the first adds the others before it ends
        wait(self.jobs)
        for job in self.jobs:
            job.result()


class ClipDecoder:
    """Decodes clips of packed videos, several at a time.

    device: what trains; where it is a GPU, its decoder is used as `settings.decoder` states. videos: all that
    are to be decoded. remark: called with a line for people on what the CPU decodes instead, and why.
    ValueError where settings.decoder is "gpu" and a video is known not to be decoded there.
    """

    def __init__(
        self,
        settings: DataSettings,
        device: torch.device,
        *,
        videos: Sequence[PackedVideo],
        remark: Callable[[str], None],
    ):
        self.settings, self.device, self.videos, self.remark = settings, device, videos, remark
        self.gpu = gpu_decoder_for(settings, device)
        refused = Counter[str]() if self.gpu is None else refused_videos(videos, self.gpu.refusal)
        decodes = self.gpu if refused.total() < len(videos) else None
        self.workers = settings.decode_workers or default_workers(decodes)
        self.chunk_mib = settings.decode_chunk_mib / self.workers
        self._pool: ThreadPoolExecutor | None = None
        self._unfinished = 0  # jobs of the pool, guarded by:
        self._jobs = threading.Condition()
        self._reported: set[str] = set()
        self._report_lock = threading.Lock()
        if refused:
            self._report_refused(refused)

    def start(self, request: ClipRequest) -> PendingClips:
        """Begin to decode; waits while all threads have work, so that no more encoded videos lie ready."""
        with self._jobs:
            self._jobs.wait_for(lambda: self._unfinished < self.workers)
        pending = PendingClips()
        self._add_job(pending, lambda: self._decode_video(request, pending))
        return pending

    def _add_job(self, pending: PendingClips, job: Callable[[], None]) -> None:
        with self._jobs:
            future = self._started_pool().submit(job)
            self._unfinished += 1
        pending.jobs.append(future)
        future.add_done_callback(self._job_done)

    def _idle_threads(self) -> int:
        with self._jobs:
            return max(0, self.workers - self._unfinished)

    def _job_done(self, future: Future[None]) -> None:
        with self._jobs:
            self._unfinished -= 1
            self._jobs.notify_all()

    def close(self) -> None:
        """Join the threads and release their decoders; starting again starts new ones."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            release_decoders()

    def _started_pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "leantad-decoder", self._prepare_thread)
        return self._pool

    def _prepare_thread(self) -> None:
        # One thread of torch's for this one: a second pool of them would slow down the training step's own,
        # as OpenMP threads stop spinning between operations where they outnumber the cores (measured: x 1.8)
        torch.set_num_threads(1)
        if self.device.type == "cuda":  # kernels and copies run beside the training step's, not between them
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            torch.cuda.set_stream(stream)

    # --------------------------------------------------------------------------------------- decoding

    def _decode_video(self, request: ClipRequest, pending: PendingClips) -> None:
        """Decode the clips of a video, together with the threads that have nothing else to do."""
        wanted, inverse = np.unique(request.frames, return_inverse=True)
        with open_packets(request.data, request.num_frames) as video:
            on_gpu = self._goes_to_gpu(video, wanted, request.video)
            mine, *others = split(video, wanted, 1 + self._idle_threads())
            done = len(mine)
            for part in others:
                self._add_job(pending, partial(self._decode_part, request, part, inverse - done, on_gpu))
                done += len(part)
            self._decode_frames(video, request, mine, inverse, on_gpu)

    def _decode_part(
        self, request: ClipRequest, wanted: NDArray[np.int64], inverse: NDArray[np.int64], on_gpu: bool
    ) -> None:
        with open_packets(request.data, request.num_frames) as video:
            self._decode_frames(video, request, wanted, inverse, on_gpu)

    def _decode_frames(
        self,
        video: Packets,
        request: ClipRequest,
        wanted: NDArray[np.int64],
        inverse: NDArray[np.int64],
        on_gpu: bool,
    ) -> None:
        """Decode the `wanted` frames; inverse: (F,) the index in `wanted` of what each slot shows."""
        settings, done = self.settings, 0
        for chunk in self._chunks(video, wanted, request.video, on_gpu):
            images = apply_view(chunk, request.view, resize=settings.resize, crop=settings.crop)
            (shown,) = np.nonzero((inverse >= done) & (inverse < done + len(chunk)))
            decoded = np.ascontiguousarray(images.cpu().numpy())
            slots = tuple(numbers[shown] for numbers in request.slots)
            copy_pictures(decoded, (inverse[shown] - done,), request.pictures, slots)
            done += len(chunk)
            del chunk, images, decoded  # or two chunks would be held while the next is decoded

    def _chunks(
        self, video: Packets, wanted: NDArray[np.int64], packed: PackedVideo, on_gpu: bool
    ) -> Iterator[torch.Tensor]:
        """Chunks (F, H, W, 3) uint8 of the frames; the CPU goes on where the GPU fails."""
        done = 0
        if on_gpu:
            assert self.gpu is not None
            try:
                for chunk in decode_on_gpu(video, wanted, self.gpu.device, decode_chunk_mib=self.chunk_mib):
                    done += len(chunk)
                    yield chunk
                    del chunk
                return
            except GpuDecoderError as error:
                self._refuse(str(error), packed)
        yield from self._on_cpu(video, wanted[done:], packed)

    def _on_cpu(
        self, video: Packets, wanted: NDArray[np.int64], packed: PackedVideo
    ) -> Iterator[torch.Tensor]:
        return decode_on_cpu(video, wanted, codec=packed.codec, decode_chunk_mib=self.chunk_mib, threads=1)

    # --------------------------------------------------------------------------------- which decoder

    def _goes_to_gpu(self, video: Packets, wanted: NDArray[np.int64], packed: PackedVideo) -> bool:
        if self.gpu is None:
            return False
        format = format_of(video, packed.codec)
        reason = self.gpu.refusal(format)
        if reason is None:
            reason = refusal_of_video(video, format.codec)
        if reason is None:
            reason = self.gpu.refusal_after_try(
                format, lambda: self._try(video, wanted[:TRIED_FRAMES], packed)
            )
            if reason is not None:
                count = sum(packed_format(other) == format for other in self.videos)
                reason = f"{reason} ({format}, {counted(count, 'video')})"
        if reason is not None:
            self._refuse(reason, packed)
        return reason is None

    def _try(self, video: Packets, wanted: NDArray[np.int64], packed: PackedVideo) -> str | None:
        """Why the GPU does not decode a few frames as the CPU does; None: it does.

        Raises ValueError if the CPU does not decode them either.
        """
        assert self.gpu is not None
        here = _first(self._on_cpu(video, wanted, packed))
        try:
            there = _first(decode_on_gpu(video, wanted, self.gpu.device, decode_chunk_mib=self.chunk_mib))
        except GpuDecoderError as error:
            return str(error)
        if there.shape != here.shape:
            return f"its pictures are {tuple(there.shape[1:3])}, the CPU's {tuple(here.shape[1:3])}"
        off = (here.int() - there.int()).abs()
        worst, mean = int(off.max()), float(off.float().mean())
        if worst > MAX_OFF or mean > MEAN_OFF:
            return f"its pixels are wrong, by up to {worst} of 255 (mean {mean:.1f})"
        return None

    def _refuse(self, reason: str, packed: PackedVideo) -> None:
        """Report once for each reason that the CPU decodes instead; ValueError if it must not."""
        if self.settings.decoder == "gpu":
            raise ValueError(f"the GPU does not decode it: {reason}; set data.decoder to auto")
        with self._report_lock:
            if reason not in self._reported:
                self._reported.add(reason)
                self.remark(
                    f"loader: the CPU decodes {packed.key}, and others like it, not the GPU: {reason}"
                )

    def _report_refused(self, counts: Counter[str]) -> None:
        """Report at once what is known beforehand."""
        if self.settings.decoder == "gpu":
            raise ValueError(
                f"data.decoder: got gpu, which does not decode {refusal_text(counts)}; want auto"
            )
        self._reported.update(counts)
        self.remark(
            f"loader: the CPU decodes {counts.total()} of {counted(len(self.videos), 'video')}, not the GPU: "
            f"{refusal_text(counts)}"
        )


def _first(chunks: Iterator[torch.Tensor]) -> torch.Tensor:
    """A copy of the first chunk on the CPU, made while its decoder is still lent."""
    for chunk in chunks:
        return chunk.cpu().clone()
    raise AssertionError("no frame was asked for")


def gpu_decoder_for(settings: DataSettings, device: torch.device) -> GpuDecoder | None:
    """The decoder of the GPU that trains; None: the CPU decodes all. ValueError if there must be one."""
    if device.type == "cpu" and settings.decoder == "gpu":
        raise ValueError("data.decoder: got gpu, want auto or cpu: run.device is the CPU")
    if device.type == "cpu" or settings.decoder == "cpu":
        return None
    return gpu_decoder_of(with_index(device))


def default_workers(gpu: GpuDecoder | None) -> int:
    """For a GPU one for each of its decoders, else one for each core; cores are shared by the ranks here."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    cores = max(1, len(os.sched_getaffinity(0)) // max(1, ranks))
    return min(cores, MAX_WORKERS if gpu is None else min(MAX_GPU_WORKERS, gpu.num_decoders()))
