"""What of one foreign network can be rewired, and whether it is right: one row of the coverage table.

Which blocks are residual is counted without `rewire`: in a run with a graph, an addition of two tensors of
one shape, of which one depends on the other, is a residual connection, and the innermost module in whose
forward it happens is a residual block. (A shortcut that computes something depends on nothing of the other
term, so a transition does not count.)
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from model.backbones.batch_norm import freeze_batch_norms
from model.rewire import rewire, rewired_stages, set_beta
from model.rewired_stage import Rewired
from model.tracing.graph import is_layer
from model.tracing.install import RecomputedForward
from model.tracing.rewired_chain import RewiredChain
from tools.benchmarks.networks import ForeignNetwork, known_networks
from tools.benchmarks.trackers import SavedBytes

MIB = 2**20


@dataclass
class CoverageRow:
    """One network; what could not be measured is None."""

    network: str
    family: str
    blocks: int = 0  # residual ones
    rewired: int = 0  # of these
    plain_mib: float | None = None  # saved for the backward pass, in training
    rewired_mib: float | None = None
    beta_0_difference: float | None = None  # the largest of all outputs, inputs and modes
    # At beta 1 against plain autograd, relative L2, the largest of both modes of batch norms: in float32, and
    # in float64, where roundings, which random weights amplify, do not hide an error of the method
    gradient_error: float | None = None
    gradient_error_64: float | None = None
    seconds: float = 0.0  # of the processor, for `rewire`
    error: str | None = None
    refused: dict[str, str] = field(default_factory=dict)  # residual blocks that were not rewired: why

    @property
    def share(self) -> float | None:
        """Of the residual blocks; None if there is none."""
        return self.rewired / self.blocks if self.blocks else None


# ------------------------------------------------------------------------------------ counting blocks


class _Additions(TorchFunctionMode):
    """Notes the modules in whose forward one term of an addition depends on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self.callers: dict[str, set[str]] = {}  # of a residual block: all modules whose forward was running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("add", "add_", "__iadd__", "__radd__") and len(args) == 2:
            a, b = args
            alike = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a is not b
            if alike and (_depends_on(a, b) or _depends_on(b, a)):
                self.callers.setdefault(self.stack[-1], set()).update(self.stack)
        return func(*args, **(kwargs or {}))


def _depends_on(later: Tensor, earlier: Tensor) -> bool:
    """Whether the graph of `later` holds that of `earlier`."""
    goal = earlier.grad_fn
    if goal is None or later.grad_fn is None:
        return False
    oldest, seen, left = goal._sequence_nr(), {later.grad_fn}, [later.grad_fn]
    while left:
        node = left.pop()
        if node is goal:
            return True
        for other, _ in node.next_functions:
            if other is not None and other not in seen and other._sequence_nr() >= oldest:
                seen.add(other)
                if other.name() != "torch::autograd::AccumulateGrad":
                    left.append(other)
    return False


def residual_blocks(network: nn.Module, x: Tensor) -> dict[str, set[str]]:
    """The modules with residual connections, with all modules that call each; the network runs once."""
    additions = _Additions()
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name and not is_layer(module):
                pre_hook = module.register_forward_pre_hook(
                    lambda *_, name=name: additions.stack.append(name)
                )
                hook = module.register_forward_hook(lambda *_: additions.stack.pop() and None)
                stack.callback(pre_hook.remove)
                stack.callback(hook.remove)
        stack.enter_context(additions)
        network(x.clone().requires_grad_())
    return additions.callers


# ---------------------------------------------------------------------------------------- measuring


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a network returns."""
    leaves = tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def saved_mib(network: nn.Module, x: Tensor) -> float:
    """What autograd keeps after a forward pass, without parameters and the input."""
    known = [x, *network.parameters(), *network.buffers()]
    with SavedBytes({tensor.untyped_storage().data_ptr() for tensor in known}) as saved:
        output = network(x)
    now = saved.now
    del output
    return now / MIB


def largest_difference(network: nn.Module, plain: nn.Module, inputs: list[Tensor]) -> float:
    """Of all outputs for all inputs, in training (with the same random numbers) and in evaluation mode."""
    largest = 0.0
    for training in (True, False):
        for x in inputs:
            outputs = []
            for one in (network, plain):
                torch.manual_seed(3)
                with torch.no_grad():
                    outputs.append(_tensors(one.train(training)(x)))
            for found, expected in zip(*outputs, strict=True):
                largest = max(largest, float((found - expected).abs().max()))
    network.train()
    plain.train()
    return largest


def _gradients(network: nn.Module, x: Tensor) -> Tensor:
    """Of a loss that weighs every output differently, with the same random numbers, all in one vector."""
    network.zero_grad()
    torch.manual_seed(4)
    outputs = [y for y in _tensors(network(x)) if y.requires_grad]
    loss = sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in outputs)
    loss.backward()  # type: ignore[union-attr]
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])


@contextmanager
def plain_autograd(network: nn.Module) -> Iterator[None]:
    """Inside, the rewired network keeps all its activations and inverts and recomputes nothing."""
    chains = [stage for stage in rewired_stages(network) if isinstance(stage, RewiredChain)]
    recomputed = [m for m in network.modules() if isinstance(vars(m).get("forward"), RecomputedForward)]
    forwards = [vars(module).pop("forward") for module in recomputed]
    for chain in chains:
        chain.store_activations = True
    try:
        yield
    finally:
        for chain in chains:
            chain.store_activations = False
        for module, forward in zip(recomputed, forwards, strict=True):
            vars(module)["forward"] = forward


def gradient_error(network: nn.Module, x: Tensor) -> float:
    """The rewired network's gradients against plain autograd of the same recurrence, relative L2."""
    found = _gradients(network, x)
    with plain_autograd(network):
        expected = _gradients(network, x)
    return float((found - expected).norm() / expected.norm())


def _gradient_errors(network: nn.Module, x: Tensor) -> float:
    """The larger of the errors with batch norms in training and in evaluation mode."""
    error = gradient_error(network.train(), x)
    freeze_batch_norms(network)
    return max(error, gradient_error(network, x))


def _other_inputs(network: nn.Module, one: ForeignNetwork) -> list[Tensor]:
    """The network's input, others, one of three samples, and one of another size if it takes that."""
    inputs = [one.input(seed) for seed in (1, 2)]
    inputs.append(torch.cat([inputs[1], inputs[0][:1]]))
    *others, height, width = one.shape
    for size in ((height + 32, width + 32), (height * 2, width * 2)):
        x = one.input(5, (*others, *size))
        try:
            with torch.no_grad():
                network(x)
        except Exception:  # whatever a network raises whose size is fixed
            continue
        return [*inputs, x]
    return inputs


def _count(row: CoverageRow, blocks: dict[str, set[str]], table: list[Rewired]) -> None:
    reversible = {line.name for line in table if line.kind == "reversible"}
    reasons = {line.name: line.reason for line in table if line.kind != "reversible"}
    row.blocks = len(blocks)
    for name, callers in blocks.items():
        if callers.intersection(reversible):
            row.rewired += 1
        else:
            around = [other for other in reasons if name == other or name.startswith(f"{other}.")]
            row.refused[name] = reasons[max(around, key=len)] if around else "its sum is in a larger forward"


def measure(one: ForeignNetwork) -> CoverageRow:
    """One row of the table. What a network raises stands in its `error`."""
    row = CoverageRow(one.name, one.family)
    try:
        _measure(one, row)
    except Exception as error:  # a network of another library may raise anything; the next one is to run
        row.error = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
    return row


def _measure(one: ForeignNetwork, row: CoverageRow) -> None:
    network = one.build()
    freeze_batch_norms(network)
    plain, x = copy.deepcopy(network), one.input(1)
    blocks = residual_blocks(plain, x)
    row.blocks, row.plain_mib = len(blocks), saved_mib(plain, x)
    if not blocks:
        return  # nothing to rewire
    start = time.process_time()
    try:
        table = rewire(network, beta=0.0, example=x)
    finally:
        row.seconds = time.process_time() - start
    _count(row, blocks, table)
    row.beta_0_difference = largest_difference(network, plain, _other_inputs(plain, one))
    set_beta(network, 1.0)
    row.gradient_error = _gradient_errors(network, x)
    row.rewired_mib = saved_mib(network, x)
    for stage in rewired_stages(network):
        stage.fixed_point_states = False  # of 20 bits: a rounding, too
    row.gradient_error_64 = _gradient_errors(network.double(), x.double())


def main() -> None:
    """Measure the network whose name is the first argument; its row is the last line on stdout, as JSON."""
    (one,) = (one for one in known_networks() if one.name == sys.argv[1])
    torch.set_num_threads(1)
    print(f"\n{json.dumps(asdict(measure(one)))}", flush=True)


if __name__ == "__main__":
    main()
