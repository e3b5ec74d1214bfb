"""Records what a module computes in one real call: for code that torch.fx cannot trace.

The call runs once on real tensors, and every torch function in it becomes an operation. Sizes, flags and
whatever else is no tensor become constants, so a tape holds for calls of the same signature alone
(model/tracing/arguments.py): another one is taped anew. Values that are read from tensors, gradients that
are switched off and autocast that is changed within the call would become constants too, silently: they are
refused, or keep the submodule that does it as one operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ..recompute import frozen_statistics
from ..repeatable import python_random_state
from .arguments import Arguments, tensors_in
from .graph import Untraceable, first_line, is_layer, own_forward, restored_afterwards, without_hooks
from .memo import Attributes, assigned_since, attributes_of, empty_memos
from .operations import METADATA, Program, program_of

# Operators that reach a torch function mode under their special name.
_OPERATORS: dict[str, Callable[..., Any]] = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}


class _ReadsValueError(Exception):
    """The code takes a value out of a tensor, or changes how torch computes."""


class _Tape(TorchFunctionMode):
    """Writes the graph of one call; `stack` names the modules whose forward is running."""

    def __init__(self, block: nn.Module, root: nn.Module, leaves: Collection[str]) -> None:
        super().__init__()
        self.graph, self.root, self.leaves = fx.Graph(), root, leaves
        self.nodes: dict[int, fx.Node] = {}
        self.kept: list[Tensor] = []  # so that no id occurs twice
        self.stack: list[tuple[str, type]] = []
        self.leaf_depth = 0
        self.failed: str | None = None
        self.context = _context()
        self.owned = {id(t): name for name, t in [*block.named_buffers(), *block.named_parameters()]}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        version = _version(args)
        result = func(*args, **kwargs)
        if not self.leaf_depth and not _is_first(result, args, version):
            self._record(func, args, kwargs, result)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        getter = func.__name__ == "__get__"
        name = func.__self__.__name__ if getter else func.__name__
        found = list(tensors_in(result))
        if not found and name not in ("__setitem__", "__delitem__", "__set__"):
            if name not in METADATA and any(True for _ in tensors_in([args, kwargs])):
                raise _ReadsValueError(f"reads values of a tensor with {name}()")
            return
        if name == "__set__":
            raise _ReadsValueError("assigns to an attribute of a tensor")
        if _context() != self.context:
            raise _ReadsValueError("switches gradients or autocast within its forward")
        if getter:
            self.add("call_function", getattr, (args[0], name), {}, result)
        elif name in _OPERATORS:
            self.add("call_function", _OPERATORS[name], args, kwargs, result)
        elif getattr(Tensor, name, None) is func:
            self.add("call_method", name, args, kwargs, result)
        else:
            self.add("call_function", func, args, kwargs, result)

    def add(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Write one operation, and the name under which later ones find its result."""
        node = self.graph.create_node(kind, target, self._arguments(args), self._arguments(kwargs))
        node.meta["nn_module_stack"] = {name: (name, kind) for name, kind in self.stack}
        self._name_results(node, result)

    def _name_results(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self.nodes[id(result)] = node
            self.kept.append(result)
        elif isinstance(result, tuple | list):
            for i, item in enumerate(result):
                if any(True for _ in tensors_in(item)):
                    self._name_results(self.graph.call_function(operator.getitem, (node, i)), item)
        elif isinstance(result, dict):
            for key, item in result.items():
                if any(True for _ in tensors_in(item)):
                    self._name_results(self.graph.call_function(operator.getitem, (node, key)), item)

    def _arguments(self, value: Any) -> Any:
        """The same with nodes in place of tensors."""
        if isinstance(value, Tensor):
            return self.node_of(value)
        if isinstance(value, tuple):
            return tuple(self._arguments(item) for item in value)
        if isinstance(value, list):
            return [self._arguments(item) for item in value]
        if isinstance(value, dict):
            return {key: self._arguments(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._arguments(item) for item in (value.start, value.stop, value.step)))
        return value

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The operation that gave the tensor: one before, a parameter or buffer, or a constant."""
        if id(tensor) not in self.nodes:
            if id(tensor) in self.owned:
                name = f"block.{self.owned[id(tensor)]}"
            elif tensor.grad_fn is not None:
                raise _ReadsValueError("uses a tensor with a graph that an earlier call left")
            else:
                name = f"constant{len(self.kept)}"
                setattr(self.root, name, tensor)
            self.nodes[id(tensor)] = self.graph.create_node("get_attr", name)
            self.kept.append(tensor)
        return self.nodes[id(tensor)]

    def depends_on_arguments(self, value: Any) -> bool:
        """Whether a tensor in `value` was made of what the block was called with."""
        left = [self.nodes[id(tensor)] for tensor in tensors_in(value) if id(tensor) in self.nodes]
        seen = set(left)
        while left:
            node = left.pop()
            if node.op == "placeholder":
                return True
            new = [other for other in node.all_input_nodes if other not in seen]
            seen.update(new)
            left += new
        return False

    def call(self, name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The forward of a submodule: one operation if it is a leaf, else those within."""
        leaf = not self.leaf_depth and (f"block.{name}" in self.leaves or is_layer(module))
        self.leaf_depth += bool(leaf or self.leaf_depth)
        if not self.leaf_depth:
            self.stack.append((f"block.{name}", type(module)))
        version = _version(args)
        try:
            result = forward(*args, **kw)
        except Exception:
            self.failed = self.failed or f"block.{name}"
            raise
        finally:
            if self.leaf_depth:
                self.leaf_depth -= 1
            else:
                self.stack.pop()
        if leaf and not _is_first(result, args, version):
            self.add("call_module", f"block.{name}", args, kw, result)
        return result


def _version(args: tuple[Any, ...]) -> int | None:
    """How often the first argument was changed in place."""
    return args[0]._version if args and isinstance(args[0], Tensor) else None


def _is_first(result: Any, args: tuple[Any, ...], version: int | None) -> bool:
    """Whether a call returned its first argument as it was: a dropout in evaluation, say."""
    return bool(args) and isinstance(result, Tensor) and result is args[0] and version == result._version


def _context() -> tuple[object, ...]:
    """How torch computes now: gradients, autocast."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return torch.is_grad_enabled(), tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)


@contextmanager
def _calls_recorded(block: nn.Module, tape: _Tape) -> Iterator[None]:
    """Inside, the forwards of all submodules go through the tape."""
    saved = [(module, vars(module).get("forward")) for module in block.modules() if module is not block]
    names = [name for name, module in block.named_modules() if module is not block]
    for (module, _), name in zip(saved, names, strict=True):
        vars(module)["forward"] = partial(tape.call, name, module, module.forward)
    try:
        yield
    finally:
        for module, forward in saved:
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


class _Root(nn.Module):
    """Holds the block as `block`, and the constants of the tape."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            vars(self)[name] = value  # a parameter of another module is not to be registered here
        else:
            super().__setattr__(name, value)


def _run(block: nn.Module, tape: _Tape, x: Tensor, arguments: Arguments) -> None:
    x = x.detach().clone()
    placeholders = [x, *tensors_in([arguments.args, arguments.kwargs])]
    for i, tensor in enumerate(placeholders):
        tape.nodes[id(tensor)] = tape.graph.placeholder(f"argument{i}")
        tape.kept.append(tensor)
    with torch.enable_grad(), frozen_statistics(block), own_forward(block), _calls_recorded(block, tape):
        tape.context = _context()
        with tape:
            output = arguments.call(block.forward, x)
    tape.graph.output(tape._arguments(output))


def _check_memos(block: nn.Module, recorder: _Tape, before: Attributes, x: Tensor, given: Arguments) -> None:
    """Raise Untraceable if the recorded call assigned what another call will not find as it is."""
    assigned = assigned_since(block, before)
    refused = [name for name, values in assigned.items() if recorder.depends_on_arguments(values)]
    if assigned and not refused:
        filled = attributes_of(block)
        with torch.no_grad(), frozen_statistics(block), own_forward(block):
            given.call(block.forward, x.detach().clone())
        refused = list(assigned_since(block, filled))
    if refused:
        raise Untraceable(f"its forward assigns {', '.join(sorted(refused))}")


def _record(
    block: nn.Module, x: Tensor, arguments: Arguments, leaves: Collection[str], *, empty: bool
) -> tuple[_Tape, str]:
    """The tape of one call, and what it raised."""
    recorder, error = _Tape(block, _Root(block), leaves), ""
    with restored_afterwards(block, []), without_hooks(block):
        emptied = empty_memos(block) if empty else False
        before, random_state = attributes_of(block), python_random_state()
        try:
            _run(block, recorder, x, arguments)
        except Exception as raised:  # whatever foreign code raises
            error = first_line(raised, named=not isinstance(raised, _ReadsValueError))
        if random_state != python_random_state():
            raise Untraceable("it draws from Python's or NumPy's random numbers, which are not replayed")
        if not error:
            _check_memos(block, recorder, before, x, arguments)
    if error and emptied:  # no memos, then
        return _record(block, x, arguments, leaves, empty=False)
    return recorder, error


def tape(block: nn.Module, x: Tensor, arguments: Arguments, leaf_names: Collection[str] = ()) -> Program:
    """The operations of block(x, ...) in its present training mode; the input is operation 0.

    x: any shape, with values, which the call does not change. Side effects of the call are undone. Raises
    Untraceable.
    """
    leaves = {f"block.{name}": "" for name in leaf_names}  # name -> why it is one operation
    while True:
        recorder, error = _record(block, x, arguments, leaves, empty=True)
        if not error:
            break
        if recorder.failed is None or recorder.failed in leaves:
            raise Untraceable(f"its forward cannot be recorded ({error})")
        leaves[recorder.failed] = error
    why = {name.removeprefix("block."): reason for name, reason in leaves.items() if reason}
    return program_of(recorder.graph, recorder.root, why)
