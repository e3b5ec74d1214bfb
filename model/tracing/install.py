"""Rewires networks that nobody prepared: finds residual blocks, proves them and their order, or says why not.

A chain of blocks, each fed by the one before alone, becomes one recurrence: the first block's forward runs
it, the others' pass their input on. Nothing moves in the module tree, so names, parameters and whatever walks
over the blocks stay as they are.
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
from .chain import Chain, chains
from .observe import observe
from .residual import Refusal, Residual, residual_block

# block -> its residual branches, in order, if its forward is x + F_0(x), then + F_1, ...; None: trace it
Branches = Callable[[nn.Module], "Sequence[Callable[[Tensor], Tensor]] | Residual | None"]


@dataclass(eq=False)
class ForeignStage:
    """One recurrence over a chain of blocks, in the place of the first one's forward.

    `beta`, `fixed_point_states`, `leapfrog`, `invert` and `reconstruction_error` are as in RewiredStage.
    """

    names: tuple[str, ...]
    blocks: list[nn.Module]
    found: dict[str, Residual]  # of traced blocks; those that the hook vouched for are asked for anew
    hook: Branches | None
    post_activation: bool
    beta: float
    fixed_point_states: bool
    leapfrog: bool
    invert: bool | None = None
    reconstruction_error: Tensor | None = None
    compared: bool = field(default=False)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The chain's output for the first block's input, in the dtype of x: (n, ...)."""
        only_tensor(self.names[0], args, kwargs)
        branches = [branch for name, block in self._members() for branch in self._branches(name, block)]
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
            on_reconstruction_error=self._note_error,
        )
        return y.to(x.dtype)

    def _members(self) -> Iterator[tuple[str, nn.Module]]:
        return zip(self.names, self.blocks, strict=True)

    def _branches(self, name: str, block: nn.Module) -> Sequence[Branch]:
        if name in self.found:
            return self.found[name].branches
        assert self.hook is not None
        vouched = residual_of(self.hook(block), block)
        assert vouched is not None
        return vouched.branches

    def _compare(self, x: Tensor) -> None:
        """Hold what the hook vouched for against the blocks, once; traced blocks see to it themselves."""
        recurrence = Recurrence(0.0, self.post_activation)
        rng = RngState.capture(x.device)
        for name, block in self._members():
            if name in self.found:
                continue
            with torch.no_grad(), frozen_statistics(block):
                with rng.replay():
                    expected = type(block).forward(block, x.clone())
                found = x
                with rng.replay():
                    for branch in self._branches(name, block):
                        found = recurrence.forward_step(found, found, recurrence.branch_output(branch, found))
            check_equal(name, found, expected)

    def _note_error(self, error: Tensor) -> None:
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
    """In the place of the forward of a chain's further blocks: the first one has done their work."""

    name: str

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x itself."""
        only_tensor(self.name, args, kwargs)
        return x


def only_tensor(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """ValueError if a rewired block is called with more than its input: it was proven for defaults alone."""
    for value in (*args, *kwargs.values()):
        if value is not None and value is not False:
            raise ValueError(
                f"rewire: {name} is called with a {type(value).__name__} besides its input; a rewired block "
                "takes its input alone: leave this argument out, or the network plain"
            )


def residual_of(answer: object, block: nn.Module) -> Residual | None:
    """What the branches= hook returned, as a Residual."""
    if answer is None or isinstance(answer, Residual):
        return answer
    return Residual(tuple(Branch(function, block) for function in answer), post_activation=False)


# ----------------------------------------------------------------------------------------------- finding


def _may_be_block(module: nn.Module) -> bool:
    """Not a container without a forward, nor a layer of torch.nn."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return any(True for _ in module.children()) or type(module).__module__.partition(".")[0] != "torch"


@dataclass(frozen=True)
class Found:
    """The modules of a network by name: residual ones, and those that are not, with the reason."""

    proven: dict[str, Residual]
    refused: dict[str, Refusal]


def find_blocks(network: nn.Module, hook: Branches | None) -> Found:
    """Look at every module but torch's layers, outer ones first; what lies in a residual block is its own."""
    found = Found({}, {})
    for name, module in network.named_modules():
        if name == "" or not _may_be_block(module) or any(name.startswith(f"{o}.") for o in found.proven):
            continue
        if "forward" in vars(module):
            raise ValueError(f"rewire: {name} is rewired already, or its forward is patched by somebody else")
        vouched = residual_of(hook(module), module) if hook is not None else None
        result = vouched or residual_block(module, name=name)
        if isinstance(result, Residual):
            found.proven[name] = result
        else:
            found.refused[name] = result
    return found


def find_chains(network: nn.Module, names: Sequence[str], example: Mapping[str, Any] | None) -> list[Chain]:
    """The chains of the blocks; of those that cannot be proven, what one run on `example` shows."""
    proven = chains(network, names)
    left = {name for chain in proven if chain.reason for name in chain.blocks}
    if example is None or not left:
        return proven
    seen = observe(network, names, **example)
    return [c for c in proven if not c.reason] + [c for c in seen if left.issuperset(c.blocks)]


# -------------------------------------------------------------------------------------------- installing


def install(
    network: nn.Module,
    chain: Chain,
    found: Found,
    hook: Branches | None,
    *,
    beta: float,
    fixed_point_states: bool,
    leapfrog: bool,
) -> None:
    """Make one recurrence of each run of blocks in the chain that activate alike."""
    for post_activation, run in groupby(chain.blocks, key=lambda name: found.proven[name].post_activation):
        names = tuple(run)
        blocks = [network.get_submodule(name) for name in names]
        asked = {n for n, b in zip(names, blocks, strict=True) if hook is not None and hook(b) is not None}
        traced = {name: found.proven[name] for name in names if name not in asked}
        stage = ForeignStage(names, blocks, traced, hook, post_activation, beta, fixed_point_states, leapfrog)
        for name, block in zip(names, blocks, strict=True):
            forward = stage if name == names[0] else IdentityForward(name)
            block.forward = forward  # type: ignore[assignment]


def rewire_foreign(
    network: nn.Module,
    *,
    beta: float,
    fixed_point_states: bool,
    leapfrog: bool,
    hook: Branches | None,
    example: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str, int, str]]:
    """Rewire what is proven; (name, kind, number of branches, reason) for each block, as in Rewired.

    Raises ValueError, with the network as it was, if nothing is.
    """
    found = find_blocks(network, hook)
    known = find_chains(network, list(found.proven), example)
    good = [chain for chain in known if chain.reason is None]
    if not good:
        raise ValueError(_nothing(network, found, known))
    rows = {
        name: (
            "untouched",
            0,
            f"shortcut that computes: {refusal.reason}" if refusal.transition else refusal.reason,
        )
        for name, refusal in found.refused.items()
        if _is_block(network, name)
    }
    for chain in known:
        for name in chain.blocks:
            number = len(found.proven[name].branches)
            how = f"residual; order {chain.evidence}"
            rows[name] = ("untouched", number, chain.reason) if chain.reason else ("reversible", number, how)
    for chain in good:
        install(
            network, chain, found, hook, beta=beta, fixed_point_states=fixed_point_states, leapfrog=leapfrog
        )
    order = [name for name, _ in network.named_modules() if name in rows]
    return iter([(name, *rows[name]) for name in order])


def _is_block(network: nn.Module, name: str) -> bool:
    """Whether it stands in a sequence or list of modules, as blocks do."""
    parent = network.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, nn.Sequential | nn.ModuleList)


def _nothing(network: nn.Module, found: Found, known: list[Chain]) -> str:
    reasons = [f"{', '.join(chain.blocks[:2])}: {chain.reason}" for chain in known if chain.reason]
    reasons += [
        f"{name}: {refusal.reason}" for name, refusal in found.refused.items() if _is_block(network, name)
    ]
    reasons += [f"{name}: {refusal.reason}" for name, refusal in found.refused.items()]
    why = reasons[0] if reasons else "it holds no module but torch's layers"
    return f"rewire: {type(network).__name__}: no block is known to be residual ({why})"
