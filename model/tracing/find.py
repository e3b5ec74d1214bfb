"""Finds the residual blocks of a network and the chains that they form, by tracing and by watching it run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from .chain import Chain, chains
from .example import Example
from .observe import observe
from .residual import BlockCall, NotResidual, Residual, residual_block
from .rewired_chain import BranchesOfBlock, as_residual
from .traced_block import ADVICE
from .watch import ModuleCall, Watched, watch_both_modes


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


def candidates(network: nn.Module) -> list[str]:
    """The names of the modules that may be blocks. Raises ValueError if one is rewired already."""
    names = [name for name, module in network.named_modules() if name and _may_be_block(module)]
    chosen = [name for name in names if _chooses_its_forward(network.get_submodule(name))]
    for name in names:
        if name not in chosen and "forward" in vars(network.get_submodule(name)):
            raise ValueError(f"rewire: {name} is rewired already, or its forward is patched by somebody else")
    return [name for name in names if name not in chosen]


class Nesting:
    """Which modules of a network lie within which, one that has several parents within each of them.

    (CoaT's stages and the blocks in them share a module; it is named by the stage alone.)
    """

    def __init__(self, network: nn.Module) -> None:
        first = {module: name for name, module in network.named_modules()}
        self._paths: dict[str, list[str]] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            self._paths.setdefault(first[module], []).append(path)

    def inside(self, name: str, outer: str) -> bool:
        """Whether the module `name` lies within `outer`, and is another one."""
        return any(path.startswith(f"{outer}.") for path in self._paths[name])


def _chooses_its_forward(module: nn.Module) -> bool:
    """Whether its forward is another method of its own, chosen when it was made; it is no block, then."""
    return getattr(vars(module).get("forward"), "__self__", None) is module


def find_blocks(
    network: nn.Module,
    branches: BranchesOfBlock | None,
    watched: Mapping[bool, Watched],
    proofs: dict[str, Residual | NotResidual],
) -> FoundBlocks:
    """Try every module but torch's layers, outer ones first; modules inside a residual block belong to it.

    watched: what runs in either mode showed, if there were any. proofs: what is known of modules already;
    grows.
    """
    found, nesting = FoundBlocks({}, {}), Nesting(network)
    for name in candidates(network):
        module = network.get_submodule(name)
        if any(nesting.inside(name, outer) for outer in found.residual):
            continue
        if name not in proofs:
            given = as_residual(branches(module), module) if branches is not None else None
            proofs[name] = given or _prove(name, module, watched)
        result = proofs[name]
        if isinstance(result, Residual) and not result.mixed:
            for shared in [other for other in found.residual if nesting.inside(other, name)]:
                del found.residual[shared]
            found.residual[name] = result
        else:
            found.others[name] = _only_reason(result)
    _add_mixed_blocks(network, found, watched, proofs, nesting)
    return found


def _only_reason(result: Residual | NotResidual) -> NotResidual:
    """Of a mixed block that is found already: it may lie around others this time."""
    if isinstance(result, NotResidual):
        return result
    return NotResidual("it holds residual blocks", num_mixed=len(result.branches))


def _add_mixed_blocks(
    network: nn.Module,
    found: FoundBlocks,
    watched: Mapping[bool, Watched],
    proofs: dict[str, Residual | NotResidual],
    nesting: Nesting,
) -> None:
    """Add the innermost modules that are residual in part, and hold no block that is residual as a whole.

    A module around such ones takes their place if it has branches besides theirs.
    """
    for name in reversed(list(found.others)):
        if name not in found.others:
            continue  # inside one that is added
        inside = [other for other in found.residual if nesting.inside(other, name)]
        num_inside = sum(len(found.residual[other].branches) for other in inside)
        if found.others[name].num_mixed <= num_inside:
            continue
        if not all(found.residual[other].mixed for other in inside):
            continue
        result = proofs[name]
        if not isinstance(result, Residual):
            result = _prove(name, network.get_submodule(name), watched, mixed=True)
        if isinstance(result, NotResidual):
            found.others[name] = replace(result, num_mixed=found.others[name].num_mixed)
            continue
        if len(result.branches) <= num_inside:
            continue
        proofs[name] = found.residual[name] = result
        for other in inside:
            del found.residual[other]
        for other in [other for other in found.others if other == name or nesting.inside(other, name)]:
            del found.others[other]


def _prove(
    name: str, module: nn.Module, watched: Mapping[bool, Watched], *, mixed: bool = False
) -> Residual | NotResidual:
    """Whether the module is residual, called as in the watched runs."""
    calls = [(training, call) for training, w in watched.items() for call in w.calls.get(name, ())]
    for _, call in calls:
        if call.carrying:
            names = ", ".join(call.carrying)
            return NotResidual(f"it is called with {names}, which carries a gradient into it; {ADVICE}")
    real = [BlockCall(training, call.state, call.arguments) for training, call in calls]
    found = residual_block(module, name=name, calls=real, mixed=mixed)
    if not mixed and isinstance(found, Residual) and not all(_keeps_shape(call) for _, call in calls):
        return NotResidual("it changes the shape: transition", True)
    return found


def _keeps_shape(call: ModuleCall) -> bool:
    output = call.output[0] if isinstance(call.output, tuple | list) and call.output else call.output
    if not isinstance(call.state, torch.Tensor) or not isinstance(output, torch.Tensor):
        return False
    return call.state.shape == output.shape


def residual_names(network: nn.Module, example: Example) -> list[str]:
    """The modules that are proven residual, called as in a run on the example, by name.

    A sequence of residual blocks is one itself; it stands here by the blocks in it.
    """
    watched = watch_both_modes(network, candidates(network), example)

    def blocks_in(name: str) -> list[str]:
        module = network.get_submodule(name)
        if not isinstance(module, nn.Sequential):
            return [name]
        children = [f"{name}.{child}" for child, inner in module.named_children() if _may_be_block(inner)]
        found = [c for c in children if isinstance(_prove(c, network.get_submodule(c), watched), Residual)]
        return [block for child in found for block in blocks_in(child)] or [name]

    return [block for name in find_blocks(network, None, watched, {}).residual for block in blocks_in(name)]


def find_chains(network: nn.Module, residual: Mapping[str, Residual], example: Example | None) -> list[Chain]:
    """The chains of the blocks; of those that cannot be proven, what one run on `example` shows.

    A mixed block is a chain of its own.
    """
    mixed = [name for name, found in residual.items() if found.mixed]
    names = [name for name in residual if name not in mixed]
    proven = [Chain(name.rpartition(".")[0], (name,), "alone", None) for name in mixed]
    proven += chains(network, names)
    left = {name for chain in proven if chain.reason for name in chain.blocks}
    if example is None or not left:
        return proven
    observed = observe(network, names, *example.args, **example.kwargs)
    return [c for c in proven if not c.reason] + [c for c in observed if left.issuperset(c.blocks)]
