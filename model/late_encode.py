"""Sampled encoding of clips that are chosen late: by their features, or in the backward by their gradient.

Every clip is encoded in its chunk, and the state of that call is kept. The chosen clips are encoded again, in
chunks of their own. Where that would not give the same features, because the call drew random numbers or
normalised with the statistics of its chunk, the chunks of the chosen clips are encoded again whole: exact,
but slower, as most chunks hold a chosen clip.

Memory: if the features decide, the frames of what is encoded again are kept; if the gradient does, all
frames, as uint8, as they came in and where they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from .clip_chunks import chunks_on, select_clips
from .encode_backward import KeptChunk, encoder_gradients, function_inputs, rows
from .feature_buffer import FeatureBuffer, device_of
from .late_choice import ChosenClips, LateChoice
from .partitioned import is_partitioned
from .recompute import CallState, recorded_call
from .repeatable import checked_at_first


@dataclass(frozen=True)
class _LateEncoding:
    """What one call encodes, in which chunks, and who chooses."""

    encoder: nn.Module
    device: torch.device  # of the encoder
    choice: LateChoice
    chunks: tuple[Tensor, ...]  # indices of clips in the flattened batch
    num_videos: int
    clips_per_forward: int
    gradient_factor: float

    def choose(self, values: Tensor) -> ChosenClips:
        """values: (B*N, D, t), features or their gradient."""
        return self.choice.choose(torch.unflatten(values.detach(), 0, (self.num_videos, -1)).flatten(2))


@dataclass(frozen=True)
class _SecondCall:
    """Clips that are encoded again together, and how often the gradient of each counts."""

    indices: Tensor  # (n,) rising
    factors: Tensor  # (n,) float64
    call: CallState

    def kept_chunk(self, clips: Tensor, gradient: Tensor) -> KeptChunk:
        """clips: (n, C, L, H, W), those of `indices`; gradient: (B*N, D, t), of all features."""
        factors = self.factors.to(gradient.dtype).to(gradient.device, non_blocking=True)
        return KeptChunk(clips, rows(gradient, self.indices) * factors[:, None, None], self.call)


def _depends_on_its_chunk(encoder: nn.Module, calls: list[CallState]) -> bool:
    """Whether a clip has other features in another chunk."""
    by_statistics = any(isinstance(m, _BatchNorm) and m.training for m in encoder.modules())
    return by_statistics or any(call.rng is not None for call in calls)


def _second_calls(encoding: _LateEncoding, chosen: ChosenClips, calls: list[CallState]) -> list[_SecondCall]:
    """How the chosen clips are encoded again: as many calls on every rank, whatever is chosen."""
    num_clips = sum(len(chunk) for chunk in encoding.chunks)
    by_video = torch.zeros(encoding.num_videos, num_clips // encoding.num_videos, dtype=torch.float64)
    is_kept = by_video.bool().scatter(1, chosen.clips, True).flatten()
    weights = chosen.weights
    if weights is None:
        weights = by_video.new_full(chosen.clips.shape, encoding.gradient_factor)
    factors = by_video.scatter(1, chosen.clips, weights).flatten()
    if not _depends_on_its_chunk(encoding.encoder, calls):
        again = torch.split(is_kept.nonzero()[:, 0], encoding.clips_per_forward)
        return [_SecondCall(indices, factors[indices], calls[0]) for indices in again]
    used = [bool(is_kept[indices].any()) for indices in encoding.chunks]
    # ZeRO-3 gathers parameters on all ranks at once: chunks without a chosen clip make up the number.
    spare = min(len(used), chosen.clips.numel()) - sum(used) if is_partitioned(encoding.encoder) else 0
    second_calls = []
    for indices, call, is_used in zip(encoding.chunks, calls, used, strict=True):
        if is_used or spare > 0:
            second_calls.append(_SecondCall(indices, factors[indices], call))
            spare -= not is_used
    return second_calls


class _LateSampledEncode(torch.autograd.Function):
    """(B*N, C, L, H, W) -> (B*N, D, t); the parameters get the gradient of the chosen clips alone."""

    @staticmethod
    def forward(
        ctx: Any, encoding: _LateEncoding, clips: Tensor, graph_handle: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.encoding, ctx.with_parameters = encoding, len(parameters) > 0
        ctx.calls, buffer = [], FeatureBuffer(len(clips))
        selected = (select_clips(clips, indices) for indices in encoding.chunks)
        advice = "clips chosen before (encoder.clip_sampling) and graphs held (encoder.keep_graphs=true)"
        with checked_at_first(encoding.encoder, advice):
            for indices, chunk in zip(encoding.chunks, chunks_on(encoding.device, selected), strict=True):
                encoded, call = recorded_call(encoding.encoder, chunk)
                buffer.write(indices, encoded)
                ctx.calls.append(call)
        features = buffer.complete()
        if encoding.choice.by_gradient:
            ctx.save_for_backward(clips)
        else:
            ctx.second_calls = _second_calls(encoding, encoding.choose(features), ctx.calls)
            ctx.save_for_backward(*(select_clips(clips, again.indices) for again in ctx.second_calls))
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        encoding, frames = ctx.encoding, ctx.saved_tensors
        if encoding.choice.by_gradient:
            second_calls = _second_calls(encoding, encoding.choose(gradient), ctx.calls)
            frames = (select_clips(ctx.saved_tensors[0], again.indices) for again in second_calls)
        else:
            second_calls = ctx.second_calls
        on_device = zip(second_calls, chunks_on(encoding.device, frames), strict=True)
        chunks = (again.kept_chunk(clips, gradient) for again, clips in on_device)
        return (
            None,
            None,
            None,
            *encoder_gradients(encoding.encoder, chunks, len(second_calls), ctx.with_parameters),
        )


def encode_with_late_choice(
    encoder: nn.Module, clips: Tensor, choice: LateChoice, *, clips_per_forward: int, inverse_scale: bool
) -> Tensor:
    """Features with a graph: (B, N, C, L, H, W) -> (B*N, D, t), see `model.encode.sampled_encode`."""
    num_videos, num_clips = clips.shape[:2]
    if not 1 <= choice.count <= num_clips:
        raise ValueError(f"kept: got {choice.count} clips of each video, want 1 to {num_clips}")
    encoding = _LateEncoding(
        encoder=encoder,
        device=device_of(encoder, clips),
        choice=choice,
        chunks=torch.split(torch.arange(num_videos * num_clips), clips_per_forward),
        num_videos=num_videos,
        clips_per_forward=clips_per_forward,
        gradient_factor=num_clips / choice.count if inverse_scale else 1.0,
    )
    inputs = function_inputs(encoder, clips.flatten(0, 1), encoding.device)
    features: Tensor = _LateSampledEncode.apply(encoding, *inputs)  # type: ignore[no-untyped-call]
    return features
