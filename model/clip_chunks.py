"""Chunks of clips for the encoder, on its device.

Clips wait in (pinned) host memory. While a chunk is encoded, the next is copied on a stream of its own into
the other of two buffers: the device holds two chunks, never a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def select_clips(clips: Tensor, indices: Tensor) -> Tensor:
    """The clips of these rising indices (on the CPU); neighbours are a view, so keeping them is free."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first + 1 == len(indices):
        return clips[first : last + 1]
    if clips.device.type == "cpu" and torch.cuda.is_available() and clips.is_pinned():
        chosen = torch.empty((len(indices), *clips.shape[1:]), dtype=clips.dtype, pin_memory=True)
        return torch.index_select(clips, 0, indices, out=chosen)  # pinned, or the host waits for its copy
    return clips.index_select(0, indices.to(clips.device, non_blocking=True))


def chunks_on(device: torch.device, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each of the chunks on the device; valid until the next is asked for.

    chunks: of (n, C, L, H, W), none larger than the first, in host memory or all on the device, where they
    stay as they are. From host memory they are taken one ahead of the one that is used.
    """
    waiting = iter(chunks)
    for chunk in waiting:
        if device.type == "cuda" and chunk.device != device:
            yield from _copied_ahead(device, chunk, waiting)
        else:
            yield chunk


def _copied_ahead(device: torch.device, first: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    """The chunks of host memory in two buffers in turn; the host waits for no copy from pinned memory."""
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    buffers = [torch.empty(first.shape, dtype=first.dtype, device=device) for _ in range(2)]
    copying.wait_stream(computing)  # the memory of the buffers may have been somebody's until now

    def copied(chunk: Tensor, buffer: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        into = buffer[: len(chunk)]
        with torch.cuda.stream(copying):
            into.copy_(chunk, non_blocking=True)
        return into, copying.record_event()

    ahead: tuple[Tensor, torch.cuda.Event] | None = copied(first, buffers[0])
    try:
        while ahead is not None:
            chunk, is_there = ahead
            computing.wait_event(is_there)
            buffers.reverse()  # the first is now the one that is free
            following = next(others, None)
            ahead = None if following is None else copied(following, buffers[0])
            yield chunk
            copying.wait_stream(computing)  # whatever comes into its buffer waits until it was used
    finally:
        computing.wait_stream(copying)  # where an error ended it: the buffers' memory is free only then
