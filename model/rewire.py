"""A residual network with weights -> the same parameters in a reversible network.

Each stage becomes one recurrence (model/reversible.py) over the branches of its blocks. A block that
changes the shape is a transition: an ordinary residual, phi(shortcut(x) + psi(F(x))), recomputed in the
backward pass, as is the stem. No parameter is touched: same names, same tensors, same state_dict; beta is
an attribute, not a buffer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .recompute import recompute
from .reversible import Branch, Recurrence, run_stage
from .tracing.install import Branches, ForeignStage, rewire_foreign


@dataclass(frozen=True)
class Rewired:
    """What became of one module."""

    name: str  # as in the state_dict
    # "reversible", "transition", "recomputed" (all of it, as the stem), "plain" (as asked) or "untouched"
    kind: str
    num_branches: int
    reason: str


class RewiredStage(nn.Sequential):
    """The blocks of one stage: runs of shape-keeping blocks as one recurrence each, transitions in between.

    `stored` names the transitions, and the runs of blocks, that keep their activations. `invert`,
    `fixed_point_states` and `leapfrog` are those of `run_stage`. `reconstruction_error` holds, after a
    backward pass that inverted, the relative error of the last reconstructed run (a scalar tensor), else
    None.
    """

    def __init__(
        self,
        blocks: OrderedDict[str, nn.Module],
        *,
        beta: float,
        fixed_point_states: bool,
        leapfrog: bool,
        stored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(blocks)
        self.beta = beta
        self.fixed_point_states = fixed_point_states
        self.leapfrog = leapfrog
        self.stored = stored
        self.invert: bool | None = None
        self.reconstruction_error: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, D, ...). Returns the stage output in float32 (float64 if x is)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for names in _runs(self):
            blocks = [self.get_submodule(name) for name in names]
            if _changes_shape(blocks[0]):
                x = self._transition(blocks[0], x, names[0] in self.stored)
            else:
                x = self._recurrence(blocks, x, self.stored.issuperset(names))
        return x

    def _recurrence(self, blocks: list[nn.Module], x: Tensor, stored: bool) -> Tensor:
        return run_stage(
            branches_of(blocks),
            x,
            beta=self.beta,
            post_activation=blocks[0].post_activation,
            leapfrog=self.leapfrog,
            invert=self.invert,
            fixed_point_states=self.fixed_point_states,
            store_activations=stored,
            on_reconstruction_error=self._note_error,
        )

    def _transition(self, block: nn.Module, x: Tensor, stored: bool) -> Tensor:
        function = partial(_residual, Recurrence(self.beta, block.post_activation), block)
        return function(x) if stored else recompute(function, block, x)

    def _note_error(self, error: Tensor) -> None:
        self.reconstruction_error = error


def branches_of(blocks: list[nn.Module]) -> list[Branch]:
    """The branches of all blocks, in order, each with the block that owns its parameters."""
    return [Branch(function, block) for block in blocks for function in block.branches]


def _changes_shape(block: nn.Module) -> bool:
    return block.downsample is not None


def _runs(blocks: nn.Sequential) -> list[list[str]]:
    """Names: each transition alone, and the longest runs of blocks between them."""
    runs: list[list[str]] = []
    alone = True
    for name, block in blocks.named_children():
        if alone or _changes_shape(block):
            runs.append([])
        runs[-1].append(name)
        alone = _changes_shape(block)
    return runs


def _residual(recurrence: Recurrence, block: nn.Module, x: Tensor) -> Tensor:
    """The transition: phi(shortcut(x) + psi(F(x))) in the dtype of x."""
    (branch,) = branches_of([block])
    shortcut = Branch(block.downsample, block)
    return recurrence.activate(recurrence.branch_output(branch, x) + shortcut(x).to(x.dtype))


def _check_stage(name: str, stage: nn.Module) -> None:
    if isinstance(stage, RewiredStage):
        raise ValueError(f"rewire: {name} is rewired already; set_beta changes its coefficient")
    if not isinstance(stage, nn.Sequential):
        raise ValueError(f"rewire: {name} is a {type(stage).__name__}, want an nn.Sequential of blocks")
    for child, block in stage.named_children():
        where = f"rewire: {name}.{child} is a {type(block).__name__}"
        missing = [a for a in ("branches", "downsample", "post_activation") if not hasattr(block, a)]
        if missing:
            raise ValueError(
                f"{where} without {', '.join(missing)}: not known to be residual; give it these attributes "
                "(see BasicBlock in model/backbones/r2plus1d.py) or leave the network plain"
            )
        if _changes_shape(block) and len(block.branches) != 1:
            raise ValueError(f"{where} that changes the shape with {len(block.branches)} branches, want 1")
    if len({block.post_activation for block in stage}) > 1:
        raise ValueError(f"rewire: {name} mixes blocks that activate after the addition with others")


def _check_network(network: nn.Module) -> None:
    for name in network.stage_names:
        _check_stage(name, network.get_submodule(name))
    for name in network.recomputed_names:
        module = network.get_submodule(name)
        if "forward" in vars(module):
            raise ValueError(f"rewire: {name} is recomputed already")
        if any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"rewire: {name} has parameters of its own, want them in submodules: what gathers parameters "
                "before a call does not see a recomputed one"
            )


def _rows(name: str, stage: RewiredStage) -> Iterator[Rewired]:
    for child, block in stage.named_children():
        number = len(block.branches)
        if not _changes_shape(block) and child in stage.stored:
            yield Rewired(f"{name}.{child}", "recomputed", number, "its stage is recomputed as a whole")
        elif not _changes_shape(block):
            yield Rewired(f"{name}.{child}", "reversible", number, "keeps its shape")
        elif child in stage.stored:
            yield Rewired(f"{name}.{child}", "transition", number, "changes the shape; activations stored")
        else:
            yield Rewired(f"{name}.{child}", "transition", number, "changes the shape; recomputed")


def rewire(
    network: nn.Module,
    *,
    beta: float = 1.0,
    fixed_point_states: bool = True,
    leapfrog: bool = False,
    stored: Collection[str] | None = None,
    branches: Branches | None = None,
    example: Mapping[str, Any] | None = None,
) -> list[Rewired]:
    """Make a network reversible, in place; says what became of every block.

    network: prepared, or anybody's. A prepared one has `stage_names`, its nn.Sequential stages of residual
        blocks (BasicBlock in model/backbones/r2plus1d.py shows what a block offers), `recomputed_names`,
        other modules of one tensor in and out, such as a stem, and perhaps `stored_names`, the default of
        `stored`; all may be dotted. In anybody's, blocks x + F(x), one or several in a row, or
        relu(x + F(x)), are found by tracing (model/tracing), and their order, too (model/tracing/chain.py).
        Its blocks must then be called with their input alone.
    exact: at beta = 1 states are kept on a grid, and the inverse is bitwise equal (model/grid.py).
    leapfrog: branches of the recurrence count 1 + beta times (model/reversible.py), which keeps a pretrained
        network closer to itself; False is Re2TAL.
    stored: names of transitions ("layer4.0") or of recomputed modules ("stem") that keep their activations
        and do not run again: faster, and free of charge where the peak lies elsewhere. None: the network's
        own choice, which leaves the peak where it is; (): none. For prepared networks.
    branches: where tracing cannot see: called with a module, gives its residual branches in order, each a
        function of one tensor that calls the module's own submodules, or None to have it traced. Held
        against the module's own forward when it first runs. For anybody's networks.
    example: keyword arguments for one call of the network, which then shows the order of blocks where it
        cannot be traced. For anybody's networks.
    Raises ValueError, with the network as it was, if a prepared network holds a module not known to be
    residual, or if no block of anybody's is.
    """
    if not hasattr(network, "stage_names"):
        Recurrence(beta)
        if stored:
            raise ValueError("rewire: stored: want a prepared network, with `stage_names`")
        rows = rewire_foreign(
            network,
            beta=beta,
            fixed_point_states=fixed_point_states,
            leapfrog=leapfrog,
            hook=branches,
            example=example,
        )
        return [Rewired(*row) for row in rows]
    _check_network(network)
    Recurrence(beta)
    stored = getattr(network, "stored_names", ()) if stored is None else stored
    _check_stored(stored, network)
    table: list[Rewired] = []
    parts = {*network.stage_names, *network.recomputed_names}
    for name, module in list(network.named_modules()):
        if name in network.stage_names:
            table.extend(
                _rewire_stage(
                    network,
                    name,
                    beta=beta,
                    fixed_point_states=fixed_point_states,
                    leapfrog=leapfrog,
                    stored=stored,
                )
            )
        elif name in stored and name in network.recomputed_names:
            table.append(Rewired(name, "plain", 0, "not a residual stage; activations stored"))
        elif name in network.recomputed_names:
            module.forward = partial(recompute, module.forward, module)
            table.append(Rewired(name, "recomputed", 0, "not a residual stage; recomputed"))
        elif _is_apart(name, parts) and any(True for _ in module.parameters(recurse=False)):
            table.append(Rewired(name, "untouched", 0, "not part of a stage; activations stored"))
    return table


def _is_apart(name: str, parts: set[str]) -> bool:
    """Whether no part contains the module of this name."""
    return not any(name == part or name.startswith(f"{part}.") for part in parts)


def _rewire_stage(
    network: nn.Module,
    name: str,
    *,
    beta: float,
    fixed_point_states: bool,
    leapfrog: bool,
    stored: Collection[str],
) -> Iterator[Rewired]:
    stage = network.get_submodule(name)
    kept = frozenset(other.removeprefix(f"{name}.") for other in stored if other.startswith(f"{name}."))
    if any(name.startswith(f"{other}.") for other in network.recomputed_names if other not in stored):
        # The stage runs again as a whole, with a graph: to invert or recompute then would be a third run.
        kept = frozenset(child for child, _ in stage.named_children())
    blocks = OrderedDict(stage.named_children())
    rewired = RewiredStage(
        blocks, beta=beta, fixed_point_states=fixed_point_states, leapfrog=leapfrog, stored=kept
    )
    parent, _, child = name.rpartition(".")
    rewired.training = stage.training  # not .train(): frozen batch norms inside are in another mode
    setattr(network.get_submodule(parent), child, rewired)
    return _rows(name, rewired)


def _check_stored(stored: Collection[str], network: nn.Module) -> None:
    known = list(network.recomputed_names)
    known += [
        f"{name}.{child}"
        for name in network.stage_names
        for child, block in network.get_submodule(name).named_children()
        if _changes_shape(block)
    ]
    for name in stored:
        if name not in known:
            raise ValueError(f"rewire: stored: got {name!r}, want some of {', '.join(known)}")


def rewired_stages(network: nn.Module) -> list[RewiredStage | ForeignStage]:
    """Every rewired stage in `network`."""
    forwards = (
        module if isinstance(module, RewiredStage) else vars(module).get("forward")
        for module in network.modules()
    )
    return [stage for stage in forwards if isinstance(stage, RewiredStage | ForeignStage)]


def set_beta(network: nn.Module, beta: float) -> None:
    """Set the coefficient of every rewired stage in `network`, from the next forward pass on.

    Raises ValueError if beta is outside [0, 1] or the network has no rewired stage.
    """
    Recurrence(beta)
    stages = rewired_stages(network)
    if not stages:
        raise ValueError(f"set_beta: {type(network).__name__} has no rewired stage; call rewire first")
    for stage in stages:
        stage.beta = beta


def reconstruction_error(network: nn.Module) -> float | None:
    """The largest relative error of a stage input in the last backward pass; None if nothing was inverted."""
    errors = [stage.reconstruction_error for stage in rewired_stages(network)]
    return max((float(error) for error in errors if error is not None), default=None)


def describe(table: list[Rewired]) -> str:
    """The table that `rewire` returned as aligned lines of text."""
    width = max(len(row.name) for row in table)
    return "\n".join(f"{r.name:<{width}}  {r.kind:<10}  {r.num_branches}  {r.reason}" for r in table)
