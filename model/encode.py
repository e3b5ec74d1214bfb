"""SampledEncode: encode every clip of a video, back-propagate through the sampled ones, in one backward.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023). ETAD encodes everything
without a graph, trains the detector on the features, then encodes the sampled clips again and pushes the
feature gradient through them: three stages and two optimizer steps. Here the first and the last stage are the
forward and the backward of one autograd.Function, so a step is one `loss.backward()`, and the detector is
ordinary autograd.

Memory: the graph of one chunk of clips, and the kept clips as they came in (uint8), on a GPU only two chunks
of them. Time: one forward over all clips, and another with its backward over the kept ones. `keep_graphs` has
it the other way round: the graphs of all kept clips, and one forward less over them. The kept clips
are chosen before the forward, or late (`model.late_choice`); how their gradients are added up is in
`model.encode_backward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .clip_chunks import chunks_on, select_clips
from .encode_backward import KeptChunk, encoder_gradients, function_inputs, rows, trainable_parameters
from .feature_buffer import FeatureBuffer, device_of, encode_into
from .kept_graphs import KeptGraphs
from .late_choice import LateChoice
from .late_encode import encode_with_late_choice
from .partitioned import is_partitioned
from .recompute import recorded_call
from .repeatable import checked_at_first

GradientScale = Literal["none", "inverse"]


@dataclass(frozen=True)
class _ChunkedClips:
    """What one call encodes: the indices of clips in the flattened batch, one tensor per chunk."""

    encoder: nn.Module
    device: torch.device  # of the encoder
    kept: tuple[Tensor, ...]
    others: tuple[Tensor, ...]
    num_clips: int
    gradient_factor: float


class _EncodeOnce(torch.autograd.Function):
    """As _SampledEncode, with the graphs of the kept clips held in between instead of built again."""

    @staticmethod
    def forward(ctx: Any, chunked: _ChunkedClips, clips: Tensor, _: Tensor, *parameters: Tensor) -> Tensor:
        ctx.chunked, ctx.graphs = chunked, KeptGraphs(chunked.encoder, len(chunked.kept))
        features = FeatureBuffer(chunked.num_clips)
        encode_into(features, ctx.graphs.encode, clips, chunked.kept, chunked.device)
        encode_into(features, chunked.encoder, clips, chunked.others, chunked.device)
        return features.complete()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chunked = ctx.chunked
        of_chunks = (rows(gradient, indices) * chunked.gradient_factor for indices in chunked.kept)
        return None, None, None, *ctx.graphs.gradients(of_chunks)


class _SampledEncode(torch.autograd.Function):
    """(B*N, C, L, H, W) -> (B*N, D, t); the gradient reaches the parameters through the kept clips alone."""

    @staticmethod
    def forward(
        ctx: Any, chunked: _ChunkedClips, clips: Tensor, graph_handle: Tensor, *parameters: Tensor
    ) -> Tensor:
        # Grad mode is off inside a Function's forward: no graph is built here.
        ctx.chunked, ctx.with_parameters = chunked, len(parameters) > 0
        ctx.calls, features = [], FeatureBuffer(chunked.num_clips)
        kept = [select_clips(clips, indices) for indices in chunked.kept]
        with checked_at_first(chunked.encoder, "its graphs held (encoder.keep_graphs=true)"):
            for indices, chunk in zip(chunked.kept, chunks_on(chunked.device, kept), strict=True):
                encoded, call = recorded_call(chunked.encoder, chunk)
                features.write(indices, encoded)
                ctx.calls.append(call)
        encode_into(features, chunked.encoder, clips, chunked.others, chunked.device)
        ctx.save_for_backward(*kept)
        return features.complete()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chunked = ctx.chunked
        kept = zip(chunks_on(chunked.device, ctx.saved_tensors), chunked.kept, ctx.calls, strict=True)
        chunks = (
            KeptChunk(clips, rows(gradient, indices) * chunked.gradient_factor, call)
            for clips, indices, call in kept
        )
        return (
            None,
            None,
            None,
            *encoder_gradients(chunked.encoder, chunks, len(chunked.kept), ctx.with_parameters),
        )


def _split_indices(indices: Tensor, clips_per_forward: int) -> tuple[Tensor, ...]:
    return torch.split(indices, clips_per_forward) if len(indices) else ()


def _chunk_clips(
    encoder: nn.Module, clips: Tensor, kept: Tensor, clips_per_forward: int, scale: GradientScale
) -> _ChunkedClips:
    """Which flattened clip is encoded in which chunk. Raises ValueError if `kept` does not fit the clips."""
    num_videos, num_clips = clips.shape[:2]
    if kept.ndim != 2 or len(kept) != num_videos or not 1 <= kept.shape[1] <= num_clips:
        want = f"({num_videos}, M) with 1 <= M <= {num_clips}"
        raise ValueError(f"kept: got shape {tuple(kept.shape)}, want {want}")
    kept = kept.cpu()
    if kept.min() < 0 or kept.max() >= num_clips:
        raise ValueError(f"kept: got clip numbers {kept.min()} to {kept.max()}, want 0 to {num_clips - 1}")
    is_kept = torch.zeros(num_videos, num_clips, dtype=torch.bool).scatter_(1, kept, True).flatten()
    if int(is_kept.sum()) != kept.numel():
        raise ValueError("kept: got a clip more than once in one video, want each at most once")
    return _ChunkedClips(
        encoder=encoder,
        device=device_of(encoder, clips),
        kept=_split_indices(is_kept.nonzero()[:, 0], clips_per_forward),
        others=_split_indices((~is_kept).nonzero()[:, 0], clips_per_forward),
        num_clips=num_videos * num_clips,
        gradient_factor=num_clips / kept.shape[1] if scale == "inverse" else 1.0,
    )


def _encode_with_graph(chunked: _ChunkedClips, clips: Tensor, keep_graphs: bool) -> Tensor:
    """(B*N, C, L, H, W) -> (B*N, D, t); the backward is the one that fits how the parameters are held."""
    inputs = function_inputs(chunked.encoder, clips, chunked.device)
    once = keep_graphs and not is_partitioned(chunked.encoder)
    features: Tensor = (_EncodeOnce if once else _SampledEncode).apply(chunked, *inputs)  # type: ignore[no-untyped-call]
    return features


def encode_some(encoder: nn.Module, clips: Tensor, numbers: Tensor, *, clips_per_forward: int) -> Tensor:
    """(M, D, t) features, without a graph, of some of the clips (n, C, L, H, W).

    numbers: (M,) on the CPU, rising, M at least 1. Raises ValueError for an encoder that does not give a row
    of features for each clip.
    """
    features = FeatureBuffer(len(numbers))
    chosen = (select_clips(clips, chunk) for chunk in torch.split(numbers, clips_per_forward))
    positions = torch.split(torch.arange(len(numbers)), clips_per_forward)
    with torch.no_grad():
        for position, chunk in zip(positions, chunks_on(device_of(encoder, clips), chosen), strict=True):
            features.write(position, encoder(chunk))
    return features.complete()


def _check_arguments(clips: Tensor, clips_per_forward: int, gradient_scale: GradientScale) -> None:
    if clips.ndim != 6 or clips.requires_grad:
        got = f"shape {tuple(clips.shape)}, requires_grad {clips.requires_grad}"
        raise ValueError(f"clips: got {got}, want (B, N, C, L, H, W) without requires_grad")
    if clips_per_forward < 1:
        raise ValueError(f"clips_per_forward: got {clips_per_forward}, want at least 1")
    if gradient_scale not in ("none", "inverse"):
        raise ValueError(f"gradient_scale: got {gradient_scale!r}, want 'none' or 'inverse'")


def sampled_encode(
    encoder: nn.Module,
    clips: Tensor,
    kept: Tensor | LateChoice | None,
    *,
    clips_per_forward: int,
    gradient_scale: GradientScale = "none",
    keep_graphs: bool = False,
) -> Tensor:
    """Features of all clips; the encoder's gradient comes from the kept clips alone, where it is exact.

    encoder: (n, C, L, H, W) -> (n, D, t); gets the clips unchanged (uint8: it normalises them itself).
    clips: (B, N, C, L, H, W), in host memory, from where a chunk is copied while the one before is encoded,
        or on the encoder's device.
    kept: (B, M), clip numbers without repeats, see `model.sampling.sample_clips`; or who will choose them,
        see `model.late_choice`; None: no clip, the features have no gradient.
    clips_per_forward: clips encoded at once; the memory of the encoder's graph is proportional to it.
    gradient_scale: how the clips left out of the gradient are made up for.
        "none"     not at all: the expected gradient is M / N of the full one (as in ETAD's released code).
                   The factor hardly matters to Adam, but it does to clipping by a norm shared with the
                   detector.
        "inverse"  the kept clips count N / M times: equal to the full gradient in expectation if every clip
                   is kept with probability M / N ("random", "uniform"); with "block" the ends count too
                   little. A choice by "importance" brings weights of its own, and is unbiased either way.

    keep_graphs: hold the graphs of the kept clips from the forward to the backward (model/kept_graphs.py):
        these clips run once less, and all of them take memory at the same time. Not with a LateChoice, nor
        under ZeRO-3, whose parameters are not there in between: then they run again.

    Without kept clips, grad mode or a trainable parameter it only encodes, chunk by chunk. Otherwise the
    kept clips run in chunks of their own, and again in the backward, with the same dropout masks; batch norm
    updates its running statistics in the forward only. No gradient reaches `clips`. Under ZeRO-3 every rank
    must encode the same number of chunks, and every trainable parameter must take part in the last kept one.

    Returns (B, D, N * t), steps in the order of the clips.
    """
    _check_arguments(clips, clips_per_forward, gradient_scale)
    num_videos, flat = len(clips), clips.flatten(0, 1)  # (B*N, C, L, H, W)
    if kept is None or not torch.is_grad_enabled() or not trainable_parameters(encoder):
        features = encode_some(encoder, flat, torch.arange(len(flat)), clips_per_forward=clips_per_forward)
    elif isinstance(kept, LateChoice):
        inverse = gradient_scale == "inverse"
        features = encode_with_late_choice(
            encoder, clips, kept, clips_per_forward=clips_per_forward, inverse_scale=inverse
        )
    else:
        chunked = _chunk_clips(encoder, clips, kept, clips_per_forward, gradient_scale)
        features = _encode_with_graph(chunked, flat, keep_graphs)
    by_video = torch.unflatten(features, 0, (num_videos, -1))  # (B, N, D, t)
    return by_video.transpose(1, 2).flatten(2)  # (B, D, N*t)
