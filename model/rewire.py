"""Makes a residual network with weights reversible: the same parameters, another forward and backward.

Each stage becomes one recurrence (model/reversible.py) over the branches of its blocks. A block that
changes the shape is a transition: an ordinary residual, phi(shortcut(x) + psi(F(x))), recomputed in the
backward pass, as is the stem. No parameter is touched: same names, same tensors, same state_dict; beta is
an attribute, not a buffer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from .prepared import PreparedNetwork
from .recompute import recompute
from .recurrence import Recurrence
from .rewired_stage import RecurrenceOptions, Rewired, RewiredStage, changes_shape, named_blocks
from .tracing.example import Example
from .tracing.install import rewire_unprepared
from .tracing.rewired_chain import BlockForward, BranchesOfBlock, RewiredChain


def _check_stage(name: str, stage: nn.Module) -> None:
    if isinstance(stage, RewiredStage):
        raise ValueError(f"rewire: {name} is rewired already; set_beta changes its coefficient")
    if not isinstance(stage, nn.Sequential):
        raise ValueError(f"rewire: {name} is a {type(stage).__name__}, want an nn.Sequential of blocks")
    for child, block in named_blocks(stage):
        where = f"rewire: {name}.{child} is a {type(block).__name__}"
        missing = [a for a in ("branches", "downsample", "post_activation") if not hasattr(block, a)]
        if missing:
            raise ValueError(
                f"{where} without {', '.join(missing)}: not known to be residual; give it these attributes "
                "(see ResidualBlock in model/prepared.py) or leave the network plain"
            )
        if changes_shape(block) and len(block.branches) != 1:
            raise ValueError(f"{where} that changes the shape with {len(block.branches)} branches, want 1")
    if len({block.post_activation for _, block in named_blocks(stage)}) > 1:
        raise ValueError(f"rewire: {name} mixes blocks that activate after the addition with others")


def _check_network(network: PreparedNetwork) -> None:
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


def _check_stored(stored: Collection[str], network: PreparedNetwork) -> None:
    known = list(network.recomputed_names)
    known += [
        f"{name}.{child}"
        for name in network.stage_names
        for child, block in named_blocks(network.get_submodule(name))
        if changes_shape(block)
    ]
    for name in stored:
        if name not in known:
            raise ValueError(f"rewire: stored: got {name!r}, want some of {', '.join(known)}")


def _table_of_stage(name: str, stage: RewiredStage) -> Iterator[Rewired]:
    for child, block in named_blocks(stage):
        full_name, number, stored = f"{name}.{child}", len(block.branches), child in stage.stored
        if changes_shape(block):
            reason = f"changes the shape; {'activations stored' if stored else 'recomputed'}"
            yield Rewired(full_name, "transition", number, reason)
        elif stored:
            yield Rewired(full_name, "recomputed", number, "its stage is recomputed as a whole")
        else:
            yield Rewired(full_name, "reversible", number, "keeps its shape")


def _rewire_stage(
    network: PreparedNetwork, name: str, options: RecurrenceOptions, stored: Collection[str]
) -> RewiredStage:
    """Put a RewiredStage in the place of the stage of this name."""
    stage = network.get_submodule(name)
    stored_blocks = frozenset(o.removeprefix(f"{name}.") for o in stored if o.startswith(f"{name}."))
    if any(name.startswith(f"{other}.") for other in network.recomputed_names if other not in stored):
        # The stage runs again as a whole, with a graph: to invert or recompute then would be a third run.
        stored_blocks = frozenset(child for child, _ in stage.named_children())
    rewired = RewiredStage(OrderedDict(stage.named_children()), options, stored=stored_blocks)
    parent, _, child = name.rpartition(".")
    rewired.training = stage.training  # not .train(): frozen batch norms inside are in another mode
    setattr(network.get_submodule(parent), child, rewired)
    return rewired


def _rewire_prepared(
    network: PreparedNetwork, options: RecurrenceOptions, stored: Collection[str]
) -> list[Rewired]:
    if not network.stage_names:
        raise ValueError(
            f"rewire: {type(network).__name__} has no residual block, so nothing of it can be reversed; "
            "recompute_modules keeps its memory small"
        )
    _check_network(network)
    _check_stored(stored, network)
    table: list[Rewired] = []
    parts = {*network.stage_names, *network.recomputed_names}
    for name, module in list(network.named_modules()):
        if name in network.stage_names:
            table.extend(_table_of_stage(name, _rewire_stage(network, name, options, stored)))
        elif name in stored and name in network.recomputed_names:
            table.append(Rewired(name, "plain", 0, "not a residual stage; activations stored"))
        elif name in network.recomputed_names:
            module.forward = partial(recompute, module.forward, module)
            table.append(Rewired(name, "recomputed", 0, "not a residual stage; recomputed"))
        elif _is_outside(name, parts) and any(True for _ in module.parameters(recurse=False)):
            table.append(Rewired(name, "untouched", 0, "not part of a stage; activations stored"))
    return table


def _is_outside(name: str, parts: set[str]) -> bool:
    """Whether no part contains the module of this name."""
    return not any(name == part or name.startswith(f"{part}.") for part in parts)


def recompute_modules(network: PreparedNetwork) -> None:
    """Let a network without residual stages run its `recomputed_names` again in the backward pass, in place.

    Raises ValueError, with the network as it was, as `rewire` does.
    """
    _check_network(network)
    for name in network.recomputed_names:
        module = network.get_submodule(name)
        module.forward = partial(recompute, module.forward, module)


def rewire(
    network: nn.Module,
    *,
    beta: float = 1.0,
    fixed_point_states: bool = True,
    leapfrog: bool = False,
    slice_bytes: int | None = None,
    stored: Collection[str] | None = None,
    branches: BranchesOfBlock | None = None,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> list[Rewired]:
    """Make a network reversible, in place; returns what became of every block.

    network: prepared, with the attributes of PreparedNetwork (model/prepared.py), or any other. In these,
        blocks x + F(x), one or several in a row, or relu(x + F(x)), are found by tracing, and so is their
        order (model/tracing); the blocks must then be called with their input alone.
    fixed_point_states: at beta = 1 states are kept on a grid: the inverse is bitwise equal (model/grid.py).
    leapfrog: branches of the recurrence count 1 + beta times, which keeps a pretrained network closer to
        itself; False is Re2TAL.
    slice_bytes: of a prepared network, a branch on tokens or windows of them that would take more bytes runs
        on slices, one after another (model/slices.py). None: never.
    stored: of a prepared network, names of transitions ("layer4.0") or of recomputed modules ("stem") that
        keep their activations and do not run again: faster, and free of charge where the peak lies elsewhere.
        None: the network's own choice, which leaves the peak where it is; (): none.
    branches: of any other network, where tracing cannot see: called with a module, returns its residual
        branches in order, each a function of one tensor that calls the module's own submodules, or None to
        have it traced. They are compared with the module's own forward when it first runs.
    example: of any other network, its input, a tuple of its arguments, or its keyword arguments: one call of
        it shows the order of blocks where it cannot be traced, with what they are called, and the bytes that
        each module keeps. None: one is made up from the network's description or its first layer.
    Raises ValueError, with the network as it was, if a prepared network holds a module not known to be
    residual, if no block of another or no stage of a prepared one is, or if an argument is for the other kind
    of network.
    """
    Recurrence(beta)  # refuses a beta outside [0, 1]
    options = RecurrenceOptions(beta, fixed_point_states, leapfrog, slice_bytes)
    # Backbones of transformers have `stage_names`, too, which mean something else.
    prepared = hasattr(network, "stage_names") and hasattr(network, "recomputed_names")
    if not prepared and stored:
        raise ValueError("rewire: stored: want a prepared network, with `stage_names` and `recomputed_names`")
    if not prepared:
        call = None if example is None else Example.of(example)
        return rewire_unprepared(network, options, branches=branches, example=call)
    if branches is not None or example is not None:
        name = "example" if branches is None else "branches"
        raise ValueError(f"rewire: {name}: got one for a prepared network, with `stage_names`; leave it out")
    stored = getattr(network, "stored_names", ()) if stored is None else stored
    return _rewire_prepared(cast(PreparedNetwork, network), options, stored)


def rewired_stages(network: nn.Module) -> list[RewiredStage | RewiredChain]:
    """Every rewired stage or chain of blocks in `network`."""
    found: list[RewiredStage | RewiredChain] = []
    for module in network.modules():
        forward = vars(module).get("forward")
        if isinstance(module, RewiredStage):
            found.append(module)
        elif isinstance(forward, BlockForward) and forward.i == 0:
            found.append(forward.chain)
    return found


def set_beta(network: nn.Module, beta: float) -> None:
    """Set the coefficient of every rewired stage in `network`, from the next forward pass on.

    Raises ValueError if beta is outside [0, 1] or the network has no rewired stage.
    """
    Recurrence(beta)  # refuses a beta outside [0, 1]
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
    """The table that `rewire` returned as aligned lines of text, with the bytes kept where they are known."""
    cells = [(r.name, r.kind, str(r.num_branches), _change(r), r.reason) for r in table]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = []
    for *columns, reason in cells:
        aligned = [text.ljust(width) for text, width in zip(columns, widths, strict=True) if width]
        lines.append("  ".join([*aligned, reason]))
    return "\n".join(lines)


def _change(row: Rewired) -> str:
    if row.bytes_before is None or row.bytes_after is None:
        return ""
    return f"{row.bytes_before / 1024:.1f} -> {row.bytes_after / 1024:.1f} KiB"
