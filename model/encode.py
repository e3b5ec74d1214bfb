"""SampledEncode: encode every clip of a video, back-propagate through the sampled ones, in one backward.

Liu et al., "ETAD: Training Action Detection End to End on a Laptop" (CVPRW 2023). ETAD encodes everything
without a graph, trains the detector on the features, then encodes the sampled clips again and pushes the
feature gradient through them: three stages and two optimizer steps. Here the first and the last stage are the
forward and the backward of one autograd.Function, so a step is one `loss.backward()`, and the detector is
ordinary autograd.

Memory: the graph of one piece of clips, and the kept clips as they came in (uint8). Time: one forward over
all clips, and another with its backward over the kept ones.

Where the gradients go. Data-parallel wrappers and ZeRO reduce a parameter as soon as autograd has accumulated
its gradient, so a backward in many pieces would reduce it many times. Two ways around:
- parameters held whole (plain torch, DDP, ZeRO 0-2): the pieces run on detached aliases of them (shared
  storage, no hooks); the sum is returned as the Function's gradient, so each is accumulated and reduced once.
- parameters partitioned (ZeRO-3; they carry `ds_id`): no aliases, as a parameter is empty between its uses.
  The pieces run on the real ones, and DeepSpeed's `ds_grad_is_ready` holds its reducer back until the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .recompute import CallState, recorded_call

GradientScale = Literal["none", "inverse"]


@dataclass(frozen=True)
class _Plan:
    """What one call encodes: clip numbers in the flattened batch, one tensor per piece."""

    encoder: nn.Module
    kept: tuple[Tensor, ...]
    others: tuple[Tensor, ...]
    num_clips: int
    gradient_factor: float


@dataclass(frozen=True)
class _Piece:
    """One kept piece as the forward met it, and the gradient of its features."""

    clips: Tensor
    gradient: Tensor  # (n, D, t)
    call: CallState


@dataclass
class _Features:
    """The features of all clips, filled piece by piece; allocated when the first piece tells its shape."""

    num_clips: int
    tensor: Tensor | None = None

    def put(self, index: Tensor, piece: Tensor) -> None:
        if piece.ndim != 3 or len(piece) != len(index):
            want = f"({len(index)}, D, t): one row of features per clip"
            raise ValueError(f"encoder: got features of shape {tuple(piece.shape)}, want {want}")
        if self.tensor is None:
            self.tensor = piece.new_empty(self.num_clips, *piece.shape[1:])
        self.tensor.index_copy_(0, index.to(piece.device), piece)

    def stacked(self) -> Tensor:
        """(n, D, t), n = num_clips."""
        assert self.tensor is not None, "no piece was encoded"
        return self.tensor


def _take(clips: Tensor, index: Tensor) -> Tensor:
    """Clips by number; neighbours are a view, so keeping them for the backward costs nothing."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return clips[first : last + 1]
    return clips.index_select(0, index.to(clips.device))


class _PieceStep(nn.Module):
    """Forward and backward of one piece in one call, so that `functional_call` spans both.

    A reversible stage runs its branches again during the backward, and must then meet the aliases, too.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, piece: _Piece) -> None:
        with piece.call.replay(self.encoder):
            features = self.encoder(piece.clips)
        features.backward(piece.gradient.to(features.dtype))


def _trainable(encoder: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]


def _is_partitioned(encoder: nn.Module) -> bool:
    """Whether ZeRO-3 holds the parameters: it marks each with an id of its own."""
    return any(hasattr(p, "ds_id") for p in encoder.parameters())


class _Sums:
    """Sums gradients over pieces: in place where they are float32 or wider, else in float32 on the side.

    bfloat16 keeps 8 bits: added up in it, the share of the hundredth piece would be rounded away.
    """

    def __init__(self, aliases: list[Tensor]):
        self.aliases = aliases
        self.wide: dict[int, Tensor] = {}

    def collect(self) -> None:
        """Move the low-precision gradients of the last piece into their float32 sums."""
        for number, alias in enumerate(self.aliases):
            if alias.dtype.itemsize >= 4 or alias.grad is None:
                continue
            gradient, alias.grad = alias.grad, None
            if number in self.wide:
                self.wide[number] += gradient
            else:
                self.wide[number] = gradient.float()

    def __iter__(self) -> Iterator[Tensor]:
        """Each parameter's gradient; zeros, never None: a rank without one would mis-pair the reduction."""
        for number, alias in enumerate(self.aliases):
            if number in self.wide:
                yield self.wide.pop(number).to(alias.dtype)
            else:
                yield torch.zeros_like(alias) if alias.grad is None else alias.grad


def _backward_whole(encoder: nn.Module, pieces: list[_Piece]) -> list[Tensor]:
    """The gradient of each trainable parameter, summed over the pieces; their own `.grad` stays untouched."""
    aliases = {f"encoder.{name}": p.detach().requires_grad_() for name, p in _trainable(encoder)}
    sums, step = _Sums(list(aliases.values())), _PieceStep(encoder)
    for piece in pieces:
        torch.func.functional_call(step, aliases, (piece,))
        sums.collect()
    return list(sums)


def _backward_partitioned(encoder: nn.Module, pieces: list[_Piece]) -> None:
    """Accumulate into the real parameters; `ds_grad_is_ready` lets ZeRO-3 reduce at the last piece only."""
    parameters, step = [p for _, p in _trainable(encoder)], _PieceStep(encoder)
    try:
        for number, piece in enumerate(pieces):
            for p in parameters:
                p.ds_grad_is_ready = number == len(pieces) - 1  # type: ignore[attr-defined]
            step(piece)
    finally:
        for p in parameters:
            p.ds_grad_is_ready = True  # type: ignore[attr-defined]


class _SampledEncode(torch.autograd.Function):
    """(B*N, C, L, H, W) -> (B*N, D, t); the gradient reaches the parameters through the kept clips alone."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, clips: Tensor, graph_handle: Tensor, *parameters: Tensor) -> Tensor:
        # Grad mode is off inside a Function's forward: no graph is built here.
        ctx.plan, ctx.with_parameters = plan, bool(parameters)
        ctx.calls, features = [], _Features(plan.num_clips)
        kept = [_take(clips, index) for index in plan.kept]
        for index, piece in zip(plan.kept, kept, strict=True):
            encoded, call = recorded_call(plan.encoder, piece)
            features.put(index, encoded)
            ctx.calls.append(call)
        for index in plan.others:
            features.put(index, plan.encoder(_take(clips, index)))
        ctx.save_for_backward(*kept)
        return features.stacked()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        pieces = [
            _Piece(clips, gradient[index.to(gradient.device)] * plan.gradient_factor, call)
            for clips, index, call in zip(ctx.saved_tensors, plan.kept, ctx.calls, strict=True)
        ]
        if ctx.with_parameters:
            return (None, None, None, *_backward_whole(plan.encoder, pieces))
        _backward_partitioned(plan.encoder, pieces)
        return None, None, None


def _split(index: Tensor, clips_per_forward: int) -> tuple[Tensor, ...]:
    return tuple(index.split(clips_per_forward)) if len(index) else ()


def _plan(
    encoder: nn.Module, clips: Tensor, kept: Tensor, clips_per_forward: int, scale: GradientScale
) -> _Plan:
    """Which flattened clip is encoded in which piece."""
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
    return _Plan(
        encoder=encoder,
        kept=_split(is_kept.nonzero()[:, 0], clips_per_forward),
        others=_split((~is_kept).nonzero()[:, 0], clips_per_forward),
        num_clips=num_videos * num_clips,
        gradient_factor=num_clips / kept.shape[1] if scale == "inverse" else 1.0,
    )


def _encode(plan: _Plan, clips: Tensor) -> Tensor:
    """(B*N, C, L, H, W) -> (B*N, D, t), by the way that fits how the parameters are held."""
    trainable = [p for _, p in _trainable(plan.encoder)]
    graph_handle = torch.zeros((), device=clips.device, requires_grad=True)  # gives the output a backward
    partitioned = _is_partitioned(plan.encoder)
    return _SampledEncode.apply(plan, clips, graph_handle, *([] if partitioned else trainable))


def _encode_without_graph(encoder: nn.Module, clips: Tensor, clips_per_forward: int) -> Tensor:
    features = _Features(len(clips))
    with torch.no_grad():
        for index in torch.arange(len(clips)).split(clips_per_forward):
            features.put(index, encoder(_take(clips, index)))
    return features.stacked()


def sampled_encode(
    encoder: nn.Module,
    clips: Tensor,
    kept: Tensor,
    *,
    clips_per_forward: int,
    gradient_scale: GradientScale = "none",
) -> Tensor:
    """Features of all clips; the encoder's gradient comes from the kept clips alone, where it is exact.

    encoder: (n, C, L, H, W) -> (n, D, t); gets the clips as they are (uint8: it normalises them itself).
    clips: (B, N, C, L, H, W). kept: (B, M), clip numbers without repeats, see `model.sampling.sample_clips`.
    clips_per_forward: clips encoded at once; the memory of the encoder's graph is proportional to it.
    gradient_scale: what becomes of the clips left out of the gradient.
        "none"     nothing: the expected gradient is M / N of the full one (as in ETAD's released code). The
                   factor hardly matters to Adam, but it does to clipping by a norm shared with the detector.
        "inverse"  the kept clips count N / M times: equal to the full gradient in expectation if every clip
                   is kept with probability M / N ("random", "uniform"); with "block" the ends count too
                   little.

    Without grad mode, or without a trainable parameter, it encodes in pieces and that is all. Otherwise the
    kept clips run in pieces of their own, and again in the backward, with the same dropout masks; batch norm
    updates its running statistics in the forward only. No gradient reaches `clips`. Under ZeRO-3 every rank
    must encode the same number of pieces, and every trainable parameter must take part in the last kept one.

    Returns (B, D, N * t), steps in the order of the clips.
    """
    if clips.ndim != 6 or clips.requires_grad:
        got = f"shape {tuple(clips.shape)}, requires_grad {clips.requires_grad}"
        raise ValueError(f"clips: got {got}, want (B, N, C, L, H, W) without requires_grad")
    if clips_per_forward < 1:
        raise ValueError(f"clips_per_forward: got {clips_per_forward}, want at least 1")
    if gradient_scale not in ("none", "inverse"):
        raise ValueError(f"gradient_scale: got {gradient_scale!r}, want 'none' or 'inverse'")
    num_videos, flat = len(clips), clips.flatten(0, 1)  # (B*N, C, L, H, W)
    if torch.is_grad_enabled() and _trainable(encoder):
        features = _encode(_plan(encoder, clips, kept, clips_per_forward, gradient_scale), flat)
    else:
        features = _encode_without_graph(encoder, flat, clips_per_forward)
    by_video = features.unflatten(0, (num_videos, -1))  # (B, N, D, t)
    return by_video.transpose(1, 2).flatten(2)  # (B, D, N*t)
