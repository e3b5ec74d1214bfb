"""SampledEncode: encode every clip of a video, back-propagate through the sampled ones, in one backward.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023). ETAD encodes everything
without a graph, trains the detector on the features, then encodes the sampled clips again and pushes the
feature gradient through them: three stages and two optimizer steps. Here the first and the last stage are the
forward and the backward of one autograd.Function, so a step is one `loss.backward()`, and the detector is
ordinary autograd.

Memory: the graph of one chunk of clips, and the kept clips as they came in (uint8), on a GPU only two chunks
of them. Time: one forward over all clips, and another with its backward over the kept ones.

How parameter gradients are accumulated. Data-parallel wrappers and ZeRO reduce a parameter as soon as
autograd has accumulated its gradient, so a backward chunk by chunk would reduce it many times. Two ways
around:
- parameters held whole (plain torch, DDP, ZeRO 0-2): the chunks run on detached aliases of them (shared
  storage, no hooks); the sum is returned as the Function's gradient, so each is accumulated and reduced once.
- parameters partitioned (ZeRO-3; they carry `ds_id`): no aliases, as a parameter is empty between its uses.
  The chunks run on the real ones, and DeepSpeed's `ds_grad_is_ready` holds its reducer back until the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .clip_chunks import chunks_on, select_clips
from .recompute import CallState, recorded_call

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


@dataclass(frozen=True)
class _KeptChunk:
    """A chunk of kept clips, the gradient of its features, and the state of its call in the forward pass."""

    clips: Tensor
    gradient: Tensor  # (n, D, t)
    call: CallState


@dataclass
class _FeatureBuffer:
    """The features of all clips, written chunk by chunk; allocated when the first chunk shows their shape."""

    num_clips: int
    tensor: Tensor | None = None

    def write(self, indices: Tensor, features: Tensor) -> None:
        if features.ndim != 3 or len(features) != len(indices):
            want = f"({len(indices)}, D, t): one row of features per clip"
            raise ValueError(f"encoder: got features of shape {tuple(features.shape)}, want {want}")
        if self.tensor is None:
            self.tensor = features.new_empty(self.num_clips, *features.shape[1:])
        self.tensor.index_copy_(0, indices.to(features.device, non_blocking=True), features)

    def complete(self) -> Tensor:
        """(n, D, t), n = num_clips."""
        assert self.tensor is not None, "no chunk was encoded"
        return self.tensor


def _encode_into(
    features: _FeatureBuffer,
    encoder: nn.Module,
    clips: Tensor,
    chunks: Sequence[Tensor],
    device: torch.device,
) -> None:
    """Encode chunks of the clips, each given by the indices of its clips."""
    selected = (select_clips(clips, indices) for indices in chunks)
    for indices, chunk in zip(chunks, chunks_on(device, selected), strict=True):
        features.write(indices, encoder(chunk))


def _rows(gradient: Tensor, indices: Tensor) -> Tensor:
    return gradient[indices.to(gradient.device, non_blocking=True)]


def _device_of(encoder: nn.Module, clips: Tensor) -> torch.device:
    """Where the encoder computes: where its parameters are, or without any, where the clips are."""
    return next((p.device for p in encoder.parameters()), clips.device)


class _ForwardBackward(nn.Module):
    """Forward and backward of one chunk in one call, so that `functional_call` spans both.

    A reversible stage runs its branches again during the backward, and must then meet the aliases, too.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, chunk: _KeptChunk) -> None:
        with chunk.call.replay(self.encoder):
            features = self.encoder(chunk.clips)
        torch.autograd.backward(features, chunk.gradient.to(features.dtype))


def _trainable_parameters(encoder: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]


def _is_partitioned(encoder: nn.Module) -> bool:
    """Whether ZeRO-3 holds the parameters: it gives each an id of its own."""
    return any(hasattr(p, "ds_id") for p in encoder.parameters())


class _GradientSums:
    """Sums gradients over chunks: in place where they are float32 or wider, else in float32 on the side.

    bfloat16 keeps 8 bits: added up in it, the share of the hundredth chunk would be rounded away.
    """

    def __init__(self, aliases: list[Tensor]):
        self.aliases = aliases
        self.float32_sums: dict[int, Tensor] = {}

    def add_low_precision(self) -> None:
        """Move the low-precision gradients of the last chunk into their float32 sums."""
        for i, alias in enumerate(self.aliases):
            if alias.dtype.itemsize >= 4 or alias.grad is None:
                continue
            gradient, alias.grad = alias.grad, None
            if i in self.float32_sums:
                self.float32_sums[i] += gradient
            else:
                self.float32_sums[i] = gradient.float()

    def __iter__(self) -> Iterator[Tensor]:
        """Each parameter's gradient; zeros, never None: a rank without one would mis-pair the reduction."""
        for i, alias in enumerate(self.aliases):
            if i in self.float32_sums:
                yield self.float32_sums.pop(i).to(alias.dtype)
            else:
                yield torch.zeros_like(alias) if alias.grad is None else alias.grad


def _backward_on_aliases(encoder: nn.Module, chunks: Iterable[_KeptChunk]) -> list[Tensor]:
    """The gradient of each trainable parameter, summed over the chunks; their own `.grad` stays untouched."""
    aliases = {f"encoder.{name}": p.detach().requires_grad_() for name, p in _trainable_parameters(encoder)}
    sums, forward_backward = _GradientSums(list(aliases.values())), _ForwardBackward(encoder)
    for chunk in chunks:
        torch.func.functional_call(forward_backward, aliases, (chunk,))
        sums.add_low_precision()
    return list(sums)


def _backward_partitioned(encoder: nn.Module, chunks: Iterable[_KeptChunk], num_chunks: int) -> None:
    """Accumulate into the real parameters; `ds_grad_is_ready` lets ZeRO-3 reduce at the last chunk only."""
    parameters = [p for _, p in _trainable_parameters(encoder)]
    forward_backward = _ForwardBackward(encoder)
    try:
        for i, chunk in enumerate(chunks):
            for p in parameters:
                p.ds_grad_is_ready = i == num_chunks - 1  # type: ignore[attr-defined]
            forward_backward(chunk)
    finally:
        for p in parameters:
            p.ds_grad_is_ready = True  # type: ignore[attr-defined]


class _SampledEncode(torch.autograd.Function):
    """(B*N, C, L, H, W) -> (B*N, D, t); the gradient reaches the parameters through the kept clips alone."""

    @staticmethod
    def forward(
        ctx: Any, chunked: _ChunkedClips, clips: Tensor, graph_handle: Tensor, *parameters: Tensor
    ) -> Tensor:
        # Grad mode is off inside a Function's forward: no graph is built here.
        ctx.chunked, ctx.with_parameters = chunked, len(parameters) > 0
        ctx.calls, features = [], _FeatureBuffer(chunked.num_clips)
        kept = [select_clips(clips, indices) for indices in chunked.kept]
        for indices, chunk in zip(chunked.kept, chunks_on(chunked.device, kept), strict=True):
            encoded, call = recorded_call(chunked.encoder, chunk)
            features.write(indices, encoded)
            ctx.calls.append(call)
        _encode_into(features, chunked.encoder, clips, chunked.others, chunked.device)
        ctx.save_for_backward(*kept)
        return features.complete()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chunked = ctx.chunked
        kept = zip(chunks_on(chunked.device, ctx.saved_tensors), chunked.kept, ctx.calls, strict=True)
        chunks = (
            _KeptChunk(clips, _rows(gradient, indices) * chunked.gradient_factor, call)
            for clips, indices, call in kept
        )
        if ctx.with_parameters:
            return (None, None, None, *_backward_on_aliases(chunked.encoder, chunks))
        _backward_partitioned(chunked.encoder, chunks, len(chunked.kept))
        return None, None, None


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
        device=_device_of(encoder, clips),
        kept=_split_indices(is_kept.nonzero()[:, 0], clips_per_forward),
        others=_split_indices((~is_kept).nonzero()[:, 0], clips_per_forward),
        num_clips=num_videos * num_clips,
        gradient_factor=num_clips / kept.shape[1] if scale == "inverse" else 1.0,
    )


def _encode_with_graph(chunked: _ChunkedClips, clips: Tensor) -> Tensor:
    """(B*N, C, L, H, W) -> (B*N, D, t); the backward is the one that fits how the parameters are held."""
    parameters = [p for _, p in _trainable_parameters(chunked.encoder)]
    graph_handle = torch.zeros((), device=chunked.device, requires_grad=True)  # gives the output a backward
    partitioned = _is_partitioned(chunked.encoder)
    inputs = [clips, graph_handle, *([] if partitioned else parameters)]
    features: Tensor = _SampledEncode.apply(chunked, *inputs)  # type: ignore[no-untyped-call]
    return features


def _encode_without_graph(encoder: nn.Module, clips: Tensor, clips_per_forward: int) -> Tensor:
    features = _FeatureBuffer(len(clips))
    with torch.no_grad():
        chunks = torch.split(torch.arange(len(clips)), clips_per_forward)
        _encode_into(features, encoder, clips, chunks, _device_of(encoder, clips))
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
    kept: Tensor | None,
    *,
    clips_per_forward: int,
    gradient_scale: GradientScale = "none",
) -> Tensor:
    """Features of all clips; the encoder's gradient comes from the kept clips alone, where it is exact.

    encoder: (n, C, L, H, W) -> (n, D, t); gets the clips unchanged (uint8: it normalises them itself).
    clips: (B, N, C, L, H, W), in host memory, from where a chunk is copied while the one before is encoded,
        or on the encoder's device.
    kept: (B, M), clip numbers without repeats, see `model.sampling.sample_clips`; None: no clip, the features
        have no gradient.
    clips_per_forward: clips encoded at once; the memory of the encoder's graph is proportional to it.
    gradient_scale: how the clips left out of the gradient are made up for.
        "none"     not at all: the expected gradient is M / N of the full one (as in ETAD's released code).
                   The factor hardly matters to Adam, but it does to clipping by a norm shared with the
                   detector.
        "inverse"  the kept clips count N / M times: equal to the full gradient in expectation if every clip
                   is kept with probability M / N ("random", "uniform"); with "block" the ends count too
                   little.

    Without kept clips, grad mode or a trainable parameter it only encodes, chunk by chunk. Otherwise the
    kept clips run in chunks of their own, and again in the backward, with the same dropout masks; batch norm
    updates its running statistics in the forward only. No gradient reaches `clips`. Under ZeRO-3 every rank
    must encode the same number of chunks, and every trainable parameter must take part in the last kept one.

    Returns (B, D, N * t), steps in the order of the clips.
    """
    _check_arguments(clips, clips_per_forward, gradient_scale)
    num_videos, flat = len(clips), clips.flatten(0, 1)  # (B*N, C, L, H, W)
    if kept is not None and torch.is_grad_enabled() and _trainable_parameters(encoder):
        chunked = _chunk_clips(encoder, clips, kept, clips_per_forward, gradient_scale)
        features = _encode_with_graph(chunked, flat)
    else:
        features = _encode_without_graph(encoder, flat, clips_per_forward)
    by_video = torch.unflatten(features, 0, (num_videos, -1))  # (B, N, D, t)
    return by_video.transpose(1, 2).flatten(2)  # (B, D, N*t)
