"""Runs a network once to see which of its blocks are called one straight after the other.

For networks whose forward cannot be traced. The result holds for that run alone (blocks that are skipped at
random, say, may all have run), so that it is used only where the caller gives an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..recompute import RngState, frozen_statistics
from .arguments import split_state, tensors_in
from .chain import Call, Chain, containers, link, unproven
from .graph import restored_afterwards
from .operations import METADATA
from .traced_block import in_mode


class _CallRecorder(TorchFunctionMode):
    """Records the calls of blocks, and which block's output is used outside the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.running: list[Call] = []  # calls that have not returned yet, outermost first
        # Block and output by id of the output; the tensor is kept, so that no id occurs twice
        self.outputs: dict[int, tuple[str, Tensor]] = {}
        self.used_elsewhere: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name not in METADATA:
            self.record_use([args, kwargs or {}])
        return func(*args, **(kwargs or {}))

    def record_use(self, values: Any) -> None:
        """The tensors in `values` are used by the calls that are running."""
        allowed = {call.source for call in self.running}
        for tensor in tensors_in(values):
            name, _ = self.outputs.get(id(tensor), (None, None))
            if name is not None and name not in allowed:
                self.used_elsewhere.add(name)

    def record_call(self, name: str, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of a block."""
        call = Call(name)
        state, arguments = split_state(name, block, args, kwargs)
        if id(state) in self.outputs:
            call.source = self.outputs[id(state)][0]
        else:
            self.record_use(state)
        self.record_use([arguments.args, arguments.kwargs])
        self.calls.append(call)
        self.running.append(call)

    def record_output(self, name: str, block: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of a block."""
        self.running.pop()
        state = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(state, Tensor):
            self.outputs[id(state)] = (name, state)


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the network may run: generators, statistics, buffers and attributes are put back afterwards."""
    buffers = [(buffer, buffer.detach().clone(), buffer._version) for buffer in network.buffers()]
    with RngState.capture(device).replay(), frozen_statistics(network), restored_afterwards(network, []):
        yield
    with torch.no_grad():
        for buffer, value, version in buffers:
            if buffer._version != version:
                buffer.copy_(value)


def _observed_calls(network: nn.Module, blocks: Sequence[str], args: Any, kwargs: Any) -> list[Call]:
    recorder = _CallRecorder()
    with ExitStack() as stack:
        for name in blocks:
            block = network.get_submodule(name)
            handles = (
                block.register_forward_pre_hook(partial(recorder.record_call, name), with_kwargs=True),
                block.register_forward_hook(partial(recorder.record_output, name)),
            )
            for handle in handles:
                stack.callback(handle.remove)
        device = next((tensor.device for tensor in tensors_in([args, kwargs])), torch.device("cpu"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(undisturbed(network, device))
        stack.enter_context(recorder)
        output = network(*args, **kwargs)
    recorder.record_use(output)
    sources = [call.source for call in recorder.calls]
    for call in recorder.calls:
        if call.source in recorder.used_elsewhere or sources.count(call.source) > 1:
            call.source = None
    return recorder.calls


def observe(network: nn.Module, blocks: Sequence[str], *args: Any, **kwargs: Any) -> list[Chain]:
    """The chains that `blocks`, dotted names, formed in network(*args, **kwargs), run once in either mode.

    Without a graph; random numbers, batch norm statistics and training flags are left as they were. Not
    detected: a tensor that the network keeps for a later call. Raises what the network raises.
    """
    found = []
    for training in (network.training, not network.training):
        with in_mode(network, training):
            found.append(link(blocks, _observed_calls(network, blocks, args, kwargs), "observed"))
    if found[0] == found[1]:
        return found[0]
    reason = "it was called otherwise in training than in evaluation"
    return [unproven(blocks, container, reason, "observed") for container in containers(blocks)]
