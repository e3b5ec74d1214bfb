"""Records what a module of any source computes, by torch.fx: its operations, what each reads and writes.

Three things that torch.fx leaves out are added. In-place operators (`x += y`, `x[0] = y`) are recorded as
such. A module that cannot be traced (control flow on values, say) becomes one operation. And whatever
tracing would silently turn into a constant stops it: Python's and NumPy's random numbers, attributes set in
forward.

Not seen: `isinstance(x, Tensor)` and `hasattr` on a value, random generators of the module's own, clocks,
files. So model/tracing/traced_block.py compares a trace with the module itself when it first runs.
"""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..recompute import RngState
from ..repeatable import python_random_state
from .operations import WRITING_OPERATORS, Program, program_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Untraceable(Exception):
    """Why a module could not be traced, for the user."""


class _Value(fx.Proxy):
    """A traced value whose in-place operators are recorded; torch.fx takes `x += y` for `x = x + y`."""

    def _operate(self, function: Callable[..., Any], *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._operate(operator.setitem, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Untraceable(f"assigns to .{name} of a tensor")
        super().__setattr__(name, value)


for _name in WRITING_OPERATORS:
    setattr(_Value, f"__{_name}__", partialmethod(_Value._operate, getattr(operator, _name)))


class OneOperation(nn.Module):
    """A base of modules that a trace keeps whole, as it does torch's layers."""


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one operation: a layer of torch's, an OneOperation, or a batch norm of any class.

    Batch norms of others derive from torch's and count their calls in forward (timm's BatchNormAct2d, say);
    `frozen_statistics` stops the counting, as in torch's.
    """
    of_torch = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return isinstance(module, _BatchNorm | OneOperation) or (
        of_torch and not isinstance(module, nn.Sequential)
    )


def first_line(error: Exception, *, named: bool) -> str:
    """What the error says, in one line, after its class if `named`."""
    kind = f"{type(error).__name__}: " if named else ""
    return f"{kind}{error}".strip().split("\n")[0][:160]


@contextmanager
def own_forward(module: nn.Module) -> Iterator[None]:
    """Inside, a rewired module runs the forward of its class."""
    replaced = vars(module).pop("forward", None)
    try:
        yield
    finally:
        if replaced is not None:
            vars(module)["forward"] = replaced


class _Root(nn.Module):
    """Calls the block with the arguments that have no default, so that all others take theirs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.required = required_arguments(block)

    def forward(self, x: Any) -> Any:
        if len(self.required) < 2:
            return self.block(x)
        return self.block(**{name: x[i] for i, name in enumerate(self.required)})


def required_arguments(module: nn.Module) -> list[str]:
    """The arguments of forward that have no default."""
    parameters = inspect.signature(module.forward).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


class Tracer(fx.Tracer):
    """Records modules named in `leaves`, and those of torch.nn, as one operation each.

    After an exception `failed` is the innermost module whose forward raised it; `fatal` is a reason not to
    try again with that module as a leaf.
    """

    proxy_buffer_attributes = True

    def __init__(self, leaves: Collection[str] = ()) -> None:
        super().__init__()
        self.leaves = leaves
        self.failed: str | None = None
        self.fatal: str | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A value that records in-place operators."""
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it stays one operation."""
        if module_qualified_name == "block":
            return False  # the module in question, torch.nn's or not
        return module_qualified_name in self.leaves or is_layer(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As fx.Tracer, but drawing random numbers is an error: the trace would repeat the numbers drawn."""
        name = self.path_of_module(m)
        python_state, torch_state = python_random_state(), torch.get_rng_state()
        try:
            result = super().call_module(m, forward, args, kwargs)
            if not torch.equal(torch_state, torch.get_rng_state()):
                raise Untraceable("draws random numbers to choose what to compute")
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            if self.fatal is None and python_state != python_random_state():
                where = _name_in_block(name)
                self.fatal = f"{where} draws from Python's or NumPy's random numbers, which are not replayed"
        return result


def _name_in_block(name: str) -> str:
    """The name of a module below _Root, seen from the block; "it" is the block itself."""
    return "it" if name in ("", "block") else name.removeprefix("block.")


def contents(value: Any) -> list[Any] | None:
    """What a list or dict holds."""
    if isinstance(value, dict):
        return list(value.items())
    return list(value) if isinstance(value, list) else None


def _same_objects(saved: list[Any], current: list[Any], *, pairs: bool) -> bool:
    if len(saved) != len(current):
        return False
    if pairs:
        return all(a[0] is b[0] and a[1] is b[1] for a, b in zip(saved, current, strict=True))
    return all(a is b for a, b in zip(saved, current, strict=True))


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Inside, no module of `module` calls its hooks: those of an engine expect tensors, not traced values."""
    found = [getattr(m, name) for m in module.modules() for name in HOOKS]
    saved = [(hooks, list(hooks.items())) for hooks in found]
    for hooks, _ in saved:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in saved:
            hooks.clear()
            hooks.update(items)


@contextmanager
def restored_afterwards(module: nn.Module, assigned: list[str]) -> Iterator[None]:
    """Undo what happens inside to attributes of all modules and to generators; names go to `assigned`."""
    saved = {
        name: (m, {key: (value, contents(value)) for key, value in vars(m).items()})
        for name, m in module.named_modules()
    }
    generators = RngState.capture(torch.device("cpu")), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        generators[0].restore()
        random.setstate(generators[1])
        np.random.set_state(generators[2])
        for name, (m, attributes) in saved.items():
            assigned += [f"{name}.{key}".strip(".") for key in _restore(m, attributes)]


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> list[str]:
    """Put back every attribute and the contents of lists and dicts; returns the names that had changed."""
    current = vars(module)
    changed = [key for key in current if key not in attributes]
    for key in changed:
        del current[key]
    for key, (value, content) in attributes.items():
        if key not in current or current[key] is not value:
            changed.append(key)
            current[key] = value
        if content is not None and not _same_objects(
            content, contents(value) or [], pairs=isinstance(value, dict)
        ):
            changed.append(key)
            value.clear()
            (value.update if isinstance(value, dict) else value.extend)(content)
    return changed


def trace(block: nn.Module, leaf_names: Collection[str] = ()) -> Program:
    """The operations of block(x), every other argument at its default, in its present training mode.

    If forward requires more than one argument, the input, operation 0, is the list of all these.
    leaf_names: dotted, of submodules to keep as one operation each. Raises Untraceable.
    """
    leaves = {f"block.{name}": "" for name in leaf_names}  # name -> why it cannot be traced
    while True:
        root, tracer, assigned = _Root(block), Tracer(leaves), list[str]()
        error = ""
        with restored_afterwards(block, assigned), without_hooks(block), own_forward(block):
            try:
                graph = tracer.trace(root)
            except Exception as raised:  # whatever foreign code raises when its input is no real tensor
                error = first_line(raised, named=not isinstance(raised, Untraceable))
        if tracer.fatal is not None:
            raise Untraceable(tracer.fatal)
        if not error:
            break
        if tracer.failed in (None, "block") or tracer.failed in leaves:
            raise Untraceable(f"its forward cannot be traced ({error})")
        leaves[tracer.failed] = error
    if assigned:
        raise Untraceable(f"its forward assigns {', '.join(sorted(set(assigned)))}")
    return program_of(graph, root, {_name_in_block(name): why for name, why in leaves.items() if why})
