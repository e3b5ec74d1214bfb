"""The backward of sampled encoding: each chunk of kept clips is encoded again and its gradient added up.

How parameter gradients are accumulated. Data-parallel wrappers and ZeRO reduce a parameter as soon as
autograd has accumulated its gradient, so a backward chunk by chunk would reduce it many times. Two ways
around:
- parameters held whole (plain torch, DDP, ZeRO 0-2): the chunks run on detached aliases of them (shared
  storage, no hooks); the sum is returned as the Function's gradient, so each is accumulated and reduced once.
- parameters partitioned (ZeRO-3; they carry `ds_id`): no aliases, as a parameter is empty between its uses.
  The chunks run on the real ones, and DeepSpeed's `ds_grad_is_ready` holds its reducer back until the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gradient_sums import GradientSums
from .recompute import CallState, graph_handle


@dataclass(frozen=True)
class KeptChunk:
    """A chunk of kept clips, the gradient of its features, and the state of its call in the forward pass."""

    clips: Tensor
    gradient: Tensor  # (n, D, t)
    call: CallState


class _ForwardBackward(nn.Module):
    """Forward and backward of one chunk in one call, so that `functional_call` spans both.

    A reversible stage runs its branches again during the backward, and must then meet the aliases, too.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, chunk: KeptChunk) -> None:
        with chunk.call.replay(self.encoder):
            features = self.encoder(chunk.clips)
        torch.autograd.backward(features, chunk.gradient.to(features.dtype))


def trainable_parameters(encoder: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that get a gradient."""
    return [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]


def is_partitioned(encoder: nn.Module) -> bool:
    """Whether ZeRO-3 holds the parameters: it gives each an id of its own."""
    return any(hasattr(p, "ds_id") for p in encoder.parameters())


def backward_on_aliases(encoder: nn.Module, chunks: Iterable[KeptChunk]) -> list[Tensor]:
    """The gradient of each trainable parameter, summed over the chunks; their own `.grad` stays untouched."""
    aliases = {f"encoder.{name}": p.detach().requires_grad_() for name, p in trainable_parameters(encoder)}
    sums, forward_backward = GradientSums(list(aliases.values())), _ForwardBackward(encoder)
    for chunk in chunks:
        torch.func.functional_call(forward_backward, aliases, (chunk,))
        sums.add_low_precision()
    return list(sums)


def backward_partitioned(encoder: nn.Module, chunks: Iterable[KeptChunk], num_chunks: int) -> None:
    """Accumulate into the real parameters; `ds_grad_is_ready` lets ZeRO-3 reduce at the last chunk only."""
    parameters = [p for _, p in trainable_parameters(encoder)]
    forward_backward = _ForwardBackward(encoder)
    try:
        for i, chunk in enumerate(chunks):
            for p in parameters:
                p.ds_grad_is_ready = i == num_chunks - 1  # type: ignore[attr-defined]
            forward_backward(chunk)
    finally:
        for p in parameters:
            p.ds_grad_is_ready = True  # type: ignore[attr-defined]


def rows(gradient: Tensor, indices: Tensor) -> Tensor:
    """Those of the gradient (B*N, D, t) that belong to these clips; indices: on the CPU."""
    return gradient[indices.to(gradient.device, non_blocking=True)]


def function_inputs(encoder: nn.Module, clips: Tensor, device: torch.device) -> list[Tensor]:
    """The tensors that an encoding Function is applied to: clips, a handle, the parameters held whole."""
    handle = graph_handle(device, True)  # gives the output a backward
    parameters = [] if is_partitioned(encoder) else [p for _, p in trainable_parameters(encoder)]
    return [clips, handle, *parameters]


def encoder_gradients(
    encoder: nn.Module, chunks: Iterable[KeptChunk], num_chunks: int, returned: bool
) -> list[Tensor]:
    """The gradients that the Function returns, if the parameters were among its inputs; else none.

    Then they have been accumulated into the parameters themselves.
    """
    if returned:
        return backward_on_aliases(encoder, chunks)
    backward_partitioned(encoder, chunks, num_chunks)
    return []
