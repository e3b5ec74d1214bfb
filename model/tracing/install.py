"""Rewires networks that were not prepared for it: finds chains of residual blocks, replaces their forwards.

A chain of blocks, each fed by the one before alone, becomes one recurrence: the first block's forward runs
it, the others' return their input. Nothing moves in the module tree, so names, parameters and code that
iterates over the blocks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..recompute import RngState, frozen_statistics
from ..reversible import Branch, Recurrence, run_stage
from ..rewired_stage import RecurrenceOptions, Rewired
from .chain import Chain, chains
from .observe import observe
from .residual import NotResidual, Residual, residual_block

# block -> its residual branches, in order, if its forward is x + F_0(x), then + F_1, ...; None: trace it
BranchesOfBlock = Callable[[nn.Module], "Sequence[Callable[[Tensor], Tensor]] | Residual | None"]


@dataclass(eq=False)
class RewiredChain:
    """One recurrence over a chain of blocks, as the forward of the first one.

    `beta`, `fixed_point_states`, `leapfrog`, `invert` and `reconstruction_error` are as in RewiredStage.
    """

    names: tuple[str, ...]
    blocks: list[nn.Module]
    traced: dict[str, Residual]  # by name; the caller's `branches` give those of the other blocks
    branches: BranchesOfBlock | None
    post_activation: bool
    beta: float
    fixed_point_states: bool
    leapfrog: bool
    invert: bool | None = None
    reconstruction_error: Tensor | None = None
    compared: bool = field(default=False)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The chain's output for the first block's input, in the dtype of x: (n, ...)."""
        check_single_argument(self.names[0], args, kwargs)
        branches = [
            branch for name, block in self._named_blocks() for branch in self._branches_of(name, block)
        ]
        if not self.compared and type(x) is Tensor and not x.is_meta:
            self._compare(x)
            self.compared = True
        y = run_stage(
            branches,
            x,
            beta=self.beta,
            post_activation=self.post_activation,
            leapfrog=self.leapfrog,
            invert=self.invert,
            fixed_point_states=self.fixed_point_states,
            on_reconstruction_error=self._store_error,
        )
        return y.to(x.dtype)

    def _named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        return zip(self.names, self.blocks, strict=True)

    def _branches_of(self, name: str, block: nn.Module) -> Sequence[Branch]:
        if name in self.traced:
            return self.traced[name].branches
        assert self.branches is not None
        residual = as_residual(self.branches(block), block)  # asked anew: a copy's functions are its own
        assert residual is not None
        return residual.branches

    def _compare(self, x: Tensor) -> None:
        """Compare the caller's branches with their blocks, once; traced blocks do so themselves."""
        rng = RngState.capture(x.device)
        for name, block in self._named_blocks():
            if name in self.traced:
                continue
            with torch.no_grad(), frozen_statistics(block), rng.replay():
                expected = type(block).forward(block, x.clone())
            with torch.no_grad(), frozen_statistics(block), rng.replay():
                found = self._sum_of_branches(name, block, x)
            check_equal(name, found, expected)

    def _sum_of_branches(self, name: str, block: nn.Module, x: Tensor) -> Tensor:
        """The block's output at beta 0, where the recurrence is the original network."""
        recurrence = Recurrence(0.0, self.post_activation)
        for branch in self._branches_of(name, block):
            x = recurrence.forward_step(x, x, recurrence.branch_output(branch, x))
        return x

    def _store_error(self, error: Tensor) -> None:
        self.reconstruction_error = error


def check_equal(name: str, found: Tensor, expected: object) -> None:
    """ValueError unless the sum of a block's branches is the block's output, but for roundings."""
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        raise ValueError(f"rewire: {name}: what branches= gave does not add up to the shape of its output")
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    if error > torch.finfo(expected.dtype).eps ** 0.5:  # a wrong branch is off by far more than roundings
        raise ValueError(f"rewire: {name}: what branches= gave differs from its output by {error:.1g} of it")


@dataclass(eq=False)
class IdentityForward:
    """The forward of a chain's further blocks: the first block has computed their output already."""

    name: str

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x itself."""
        check_single_argument(self.name, args, kwargs)
        return x


def check_single_argument(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """ValueError if a rewired block is called with more than its input: it was proven for defaults alone."""
    for value in (*args, *kwargs.values()):
        if value is not None and value is not False:
            raise ValueError(
                f"rewire: {name} is called with a {type(value).__name__} besides its input; a rewired block "
                "takes its input alone: leave this argument out, or the network plain"
            )


def as_residual(
    branches: Sequence[Callable[[Tensor], Tensor]] | Residual | None, block: nn.Module
) -> Residual | None:
    """What the caller's `branches` returned for the block."""
    if branches is None or isinstance(branches, Residual):
        return branches
    return Residual(tuple(Branch(function, block) for function in branches), post_activation=False)


# ----------------------------------------------------------------------------------------------- finding


def _may_be_block(module: nn.Module) -> bool:
    """Not a container without a forward, nor a layer of torch.nn."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return any(True for _ in module.children()) or type(module).__module__.partition(".")[0] != "torch"


@dataclass(frozen=True)
class FoundBlocks:
    """The modules of a network by name: residual ones, and those that are not, with the reason."""

    residual: dict[str, Residual]
    others: dict[str, NotResidual]


def find_blocks(network: nn.Module, branches: BranchesOfBlock | None) -> FoundBlocks:
    """Try every module but torch's layers, outer ones first; modules inside a residual block belong to it."""
    found = FoundBlocks({}, {})
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found.residual)
        if name == "" or inside or not _may_be_block(module):
            continue
        if "forward" in vars(module):
            raise ValueError(f"rewire: {name} is rewired already, or its forward is patched by somebody else")
        given = as_residual(branches(module), module) if branches is not None else None
        result = given or residual_block(module, name=name)
        if isinstance(result, Residual):
            found.residual[name] = result
        else:
            found.others[name] = result
    return found


def find_chains(network: nn.Module, names: Sequence[str], example: Mapping[str, Any] | None) -> list[Chain]:
    """The chains of the blocks; of those that cannot be proven, what one run on `example` shows."""
    proven = chains(network, names)
    left = {name for chain in proven if chain.reason for name in chain.blocks}
    if example is None or not left:
        return proven
    observed = observe(network, names, **example)
    return [c for c in proven if not c.reason] + [c for c in observed if left.issuperset(c.blocks)]


# -------------------------------------------------------------------------------------------- installing


def install(
    network: nn.Module,
    chain: Chain,
    found: FoundBlocks,
    branches: BranchesOfBlock | None,
    options: RecurrenceOptions,
) -> None:
    """Make one recurrence of each run of blocks in the chain that activate alike."""
    for post_activation, run in groupby(chain.blocks, key=lambda name: found.residual[name].post_activation):
        names = tuple(run)
        blocks = [network.get_submodule(name) for name in names]
        traced = {
            name: found.residual[name]
            for name, block in zip(names, blocks, strict=True)
            if branches is None or branches(block) is None
        }
        stage = RewiredChain(
            names,
            blocks,
            traced,
            branches,
            post_activation,
            beta=options.beta,
            fixed_point_states=options.fixed_point_states,
            leapfrog=options.leapfrog,
        )
        for name, block in zip(names, blocks, strict=True):
            block.forward = stage if name == names[0] else IdentityForward(name)


def rewire_unprepared(
    network: nn.Module,
    options: RecurrenceOptions,
    *,
    branches: BranchesOfBlock | None,
    example: Mapping[str, Any] | None,
) -> list[Rewired]:
    """Rewire the blocks that are proven residual; returns what became of each block.

    Raises ValueError, with the network as it was, if there is none.
    """
    found = find_blocks(network, branches)
    all_chains = find_chains(network, list(found.residual), example)
    known = [chain for chain in all_chains if chain.reason is None]
    if not known:
        raise ValueError(_no_block_message(network, found, all_chains))
    for chain in known:
        install(network, chain, found, branches, options)
    return _table(network, found, all_chains)


def _table(network: nn.Module, found: FoundBlocks, all_chains: list[Chain]) -> list[Rewired]:
    """What became of each block, in the order of the modules."""
    rows: dict[str, Rewired] = {}
    for name, refused in found.others.items():
        if _in_sequence(network, name):
            reason = f"shortcut that computes: {refused.reason}" if refused.transition else refused.reason
            rows[name] = Rewired(name, "untouched", 0, reason)
    for chain in all_chains:
        for name in chain.blocks:
            number = len(found.residual[name].branches)
            if chain.reason is None:
                rows[name] = Rewired(name, "reversible", number, f"residual; order {chain.evidence}")
            else:
                rows[name] = Rewired(name, "untouched", number, chain.reason)
    return [rows[name] for name, _ in network.named_modules() if name in rows]


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
    first = reasons[0] if reasons else "it holds no module but torch's layers"
    return f"rewire: {type(network).__name__}: no block is known to be residual ({first})"
