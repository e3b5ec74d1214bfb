"""Rewires networks that were not prepared for it: finds chains of residual blocks, replaces their forwards.

A chain of blocks, each fed by the one before alone, becomes one recurrence (model/tracing/rewired_chain.py).
What else keeps activations, as blocks that change the shape, stem and head, runs again in the backward pass.
Nothing moves in the module tree, so names, parameters and code that iterates over the blocks stay as they
are. Then the network runs once more, at beta 0: what does not equal the network before is not rewired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..recompute import recompute_call
from ..rewired_stage import RecurrenceOptions, Rewired
from .arguments import RefusedError
from .chain import Chain
from .example import Example, guess_example
from .find import FoundBlocks, Nesting, candidates, find_blocks, find_chains
from .observe import undisturbed
from .residual import NotResidual, Residual
from .rewired_chain import BlockForward, BranchesOfBlock, RewiredChain
from .traced_block import ADVICE, in_mode
from .watch import Watched, watch, watch_both_modes


@dataclass(frozen=True)
class _Plan:
    """What is to become of each module."""

    found: FoundBlocks
    chains: list[Chain]
    recomputed: tuple[str, ...]  # modules outside of chains that run again

    @property
    def known(self) -> list[Chain]:
        """The chains whose order is proven or observed."""
        return [chain for chain in self.chains if chain.reason is None]

    @property
    def replaced(self) -> list[str]:
        """All modules whose forward is replaced."""
        return [*(name for chain in self.known for name in chain.blocks), *self.recomputed]


def _runs(chain: Chain, found: FoundBlocks) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """The runs of blocks in the chain that activate alike, with whether after the addition."""
    for post_activation, run in groupby(chain.blocks, key=lambda name: found.residual[name].post_activation):
        yield post_activation, tuple(run)


def _install(
    network: nn.Module, plan: _Plan, branches: BranchesOfBlock | None, options: RecurrenceOptions
) -> None:
    """Make one recurrence of each run of blocks that activate alike."""
    for post_activation, names in (run for chain in plan.known for run in _runs(chain, plan.found)):
        blocks = [network.get_submodule(name) for name in names]
        traced = {
            name: plan.found.residual[name]
            for name, block in zip(names, blocks, strict=True)
            if branches is None or branches(block) is None
        }
        chain = RewiredChain(
            names,
            blocks,
            traced,
            branches,
            post_activation,
            beta=options.beta,
            fixed_point_states=options.fixed_point_states,
            leapfrog=options.leapfrog,
        )
        for i, block in enumerate(blocks):
            block.forward = BlockForward(chain, i)
    for name in plan.recomputed:
        module = network.get_submodule(name)
        module.forward = RecomputedForward(name, module)


@dataclass(eq=False)
class RecomputedForward:
    """The forward of a module that keeps its arguments alone and runs again in the backward pass."""

    name: str
    module: nn.Module

    def __call__(self, *args: object, **kwargs: object) -> object:
        """What the module returns."""
        forward = partial(type(self.module).forward, self.module)
        return recompute_call(self.name, self.module, forward, *args, **kwargs)


def _remove(network: nn.Module, plan: _Plan) -> None:
    for name in plan.replaced:
        vars(network.get_submodule(name)).pop("forward", None)


def _recomputed(network: nn.Module, chained: set[str], watched: Mapping[bool, Watched]) -> tuple[str, ...]:
    """The outermost modules besides chains that keep more than their input, and can run again."""
    found: list[str] = []
    nesting = Nesting(network)
    for name in candidates(network) if watched else ():
        within = any(nesting.inside(name, other) for other in (*found, *chained))
        around = any(other == name or nesting.inside(other, name) for other in chained)
        if within or around:
            continue
        calls = [w.calls.get(name, []) for w in watched.values()]
        if any(len(c) != 1 or c[0].problem for c in calls):
            continue
        if all(c[0].bytes > c[0].input_bytes for c in calls):
            found.append(name)
    return tuple(found)


@contextmanager
def _at_beta_zero(network: nn.Module) -> Iterator[None]:
    forwards = (vars(module).get("forward") for module in network.modules())
    chains = {id(f.chain): f.chain for f in forwards if isinstance(f, BlockForward)}.values()
    saved = [(chain, chain.beta) for chain in chains]
    for chain, _ in saved:
        chain.beta = 0.0
    try:
        yield
    finally:
        for chain, beta in saved:
            chain.beta = beta


def _outputs(network: nn.Module, example: Example) -> dict[bool, list[object]]:
    """What the network returns for the example, by training mode, all tensors in a row.

    Without a graph: with one, torch may choose other kernels for the same operations.
    """
    tensors = [leaf for leaf in tree_leaves([example.args, example.kwargs]) if isinstance(leaf, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    found = {}
    for training in (True, False):
        with in_mode(network, training), undisturbed(network, device), torch.no_grad():
            found[training] = tree_leaves(network(*example.args, **example.kwargs))
    return found


def _check_equal(network: nn.Module, example: Example, before: Mapping[bool, list[object]]) -> None:
    """Run the network at beta 0 in both modes. Raises ValueError unless all its outputs are as before.

    In half precision they are so but for roundings: the states between blocks are float32. The first run
    may show that branches add up in another order: then it runs once more.
    """
    for _ in range(2):
        with _at_beta_zero(network):
            now = _outputs(network, example)
        pairs = [pair for mode, outputs in before.items() for pair in zip(outputs, now[mode], strict=True)]
        if all(_same(a, b) for a, b in pairs):
            return
    raise ValueError(
        f"rewire: {type(network).__name__}: at beta 0 its output differs from that before, so "
        "something in it cannot be rewired; the network is left as it was"
    )


def _same(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return isinstance(a, Tensor) == isinstance(b, Tensor)
    if a.shape != b.shape or a.dtype not in (torch.float16, torch.bfloat16):
        return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    before, now = a.nan_to_num().float(), b.nan_to_num().float()
    return bool((now - before).norm() <= torch.finfo(a.dtype).eps ** 0.5 * before.norm())


def rewire_unprepared(
    network: nn.Module,
    options: RecurrenceOptions,
    *,
    branches: BranchesOfBlock | None,
    example: Example | None,
) -> list[Rewired]:
    """Rewire the blocks that are proven residual; returns what became of each block.

    Raises ValueError, with the network as it was, if there is none.
    """
    names = candidates(network)
    example = example or guess_example(network)
    watched: dict[bool, Watched] = {}
    outputs: dict[bool, list[object]] = {}
    if example is not None:
        watched, outputs = watch_both_modes(network, names, example), _outputs(network, example)
    proofs: dict[str, Residual | NotResidual] = {}
    while True:
        found = find_blocks(network, branches, watched, proofs)
        all_chains = find_chains(network, found.residual, example)
        chained = {name for chain in all_chains if chain.reason is None for name in chain.blocks}
        plan = _Plan(found, all_chains, _recomputed(network, chained, watched))
        if not plan.known:
            raise ValueError(_no_block_message(network, found, all_chains))
        _install(network, plan, branches, options)
        try:
            after = None
            if example is not None and branches is None:  # what the caller gave is compared at its first run
                _check_equal(network, example, outputs)
                after = watch(network, names, example)
        except BaseException as error:
            _remove(network, plan)
            if not isinstance(error, RefusedError) or error.name not in found.residual:
                raise
            proofs[error.name] = NotResidual(f"{error.reason}; {ADVICE}")
        else:
            return _table(network, plan, watched.get(network.training), after)


def _table(network: nn.Module, plan: _Plan, before: Watched | None, after: Watched | None) -> list[Rewired]:
    """What became of each block, in the order of the modules."""
    rows: dict[str, tuple[str, int, str]] = {}
    for name, refused in plan.found.others.items():
        if any(part.startswith(f"{name}.") for part in plan.replaced):
            continue  # a container of what has lines of its own
        around = [part for part in plan.recomputed if name.startswith(f"{part}.")]
        if around and refused.num_mixed:
            rows[name] = ("recomputed", 0, f"{refused.reason}; recomputed within {around[0]}")
        elif around:
            continue
        elif name in plan.recomputed:
            kind = "transition" if refused.transition else "recomputed"
            rows[name] = (kind, 0, f"{refused.reason}; recomputed")
        elif _in_sequence(network, name):
            reason = f"shortcut that computes: {refused.reason}" if refused.transition else refused.reason
            rows[name] = ("untouched", 0, reason)
    for chain in plan.chains:
        for name in chain.blocks:
            number = len(plan.found.residual[name].branches)
            if plan.found.residual[name].mixed:
                rows[name] = ("reversible", number, "residual between operations that are recomputed")
            elif chain.reason is None:
                rows[name] = ("reversible", number, f"residual; order {chain.evidence}")
            elif name in plan.recomputed:
                rows[name] = ("recomputed", number, f"{chain.reason}; recomputed")
            else:
                rows[name] = ("untouched", number, chain.reason)
    names = [name for name, _ in network.named_modules() if name in rows]
    return [Rewired(name, *rows[name], _bytes(before, name), _bytes(after, name)) for name in names]


def _bytes(watched: Watched | None, name: str) -> int | None:
    return None if watched is None else sum(call.bytes for call in watched.calls.get(name, ()))


def _in_sequence(network: nn.Module, name: str) -> bool:
    """Whether the module is part of a sequence or list of modules, as blocks are."""
    parent = network.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, nn.Sequential | nn.ModuleList)


def _no_block_message(network: nn.Module, found: FoundBlocks, all_chains: list[Chain]) -> str:
    reasons = [f"{', '.join(chain.blocks[:2])}: {chain.reason}" for chain in all_chains if chain.reason]
    reasons += [
        f"{name}: {refused.reason}" for name, refused in found.others.items() if _in_sequence(network, name)
    ]
    reasons += [f"{name}: {refused.reason}" for name, refused in found.others.items()]
    # True of every layer without a shortcut, so it says little: last.
    reasons.sort(key=lambda reason: "its output comes from" in reason)
    first = reasons[0] if reasons else "it holds no module but torch's layers"
    return f"rewire: {type(network).__name__}: no block is known to be residual ({first})"
