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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .gradient_sums import GradientSums
from .partitioned import held_back, is_partitioned
from .recompute import CallState, graph_handle


@dataclass(frozen=True)
class KeptChunk:
    """A chunk of kept clips, the gradient of its features, and the state of its call in the forward pass."""

    clips: Tensor
    gradient: Tensor  # (n, D, t)
    call: CallState


def _forward_backward(encoder: nn.Module, chunk: KeptChunk) -> None:
    with chunk.call.replay(encoder):
        features = encoder(chunk.clips)
    backward(features, chunk.gradient)


def backward(features: Tensor, gradient: Tensor) -> None:
    """Back-propagate the gradient of features, in whatever dtype it is."""
    torch.autograd.backward(features, gradient.to(features.dtype))


def trainable_parameters(encoder: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that get a gradient."""
    return [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]


class _Holder(nn.Module):
    """Calls a function; `functional_call` of it spans that call."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Aliases:
    """Detached aliases of an encoder's trainable parameters, and the sums of their gradients.

    num_chunks: how many backward passes the sums are of; a single one needs none on the side.
    """

    def __init__(self, encoder: nn.Module, num_chunks: int):
        self.holder = _Holder(encoder)
        self.tensors = {
            f"encoder.{name}": p.detach().requires_grad_() for name, p in trainable_parameters(encoder)
        }
        self.sums = GradientSums(list(self.tensors.values()))
        if num_chunks > 1:
            self.sums.add_on_arrival()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), within which the aliases stand in the place of the encoder's parameters.

        A reversible stage runs its branches again during the backward, and must then meet them, too.
        """
        return torch.func.functional_call(self.holder, self.tensors, (function, *arguments))


def backward_on_aliases(encoder: nn.Module, chunks: Iterable[KeptChunk], num_chunks: int) -> list[Tensor]:
    """The gradient of each trainable parameter, summed over the chunks; their own `.grad` stays untouched."""
    aliases = Aliases(encoder, num_chunks)
    for chunk in chunks:
        aliases.call(_forward_backward, encoder, chunk)
    return list(aliases.sums)


def backward_partitioned(encoder: nn.Module, chunks: Iterable[KeptChunk], num_chunks: int) -> None:
    """Accumulate into the real parameters, which ZeRO-3 reduces at the last chunk only."""
    with held_back(encoder) as let_go:
        for number, chunk in enumerate(chunks, start=1):
            if number == num_chunks:
                let_go()
            _forward_backward(encoder, chunk)


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
        return backward_on_aliases(encoder, chunks, num_chunks)
    backward_partitioned(encoder, chunks, num_chunks)
    return []
