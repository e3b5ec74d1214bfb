"""The steps of a traced module: what each of them computes, reads, and writes in place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

WRITING_OPERATORS = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
    "imatmul",
)
# Methods and functions that may return what they were given, or a view of it.
_VIEWS = """alpha_dropout as_strided bfloat16 broadcast_to chunk conj contiguous cpu cuda detach diagonal
double dropout dropout1d dropout2d dropout3d expand expand_as feature_alpha_dropout flatten float getitem half
hsplit movedim moveaxis narrow permute positive ravel real reshape reshape_as select split squeeze swapaxes
swapdims t tensor_split to transpose type type_as unbind unflatten unfold unsqueeze view view_as view_as_real
vsplit"""
_VIEW_NAMES = frozenset(_VIEWS.split())
_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Ref:
    """In the arguments of a step: the result of another one."""

    index: int


@dataclass(frozen=True)
class Step:
    """One operation. `args` and `kwargs` hold Refs, in containers too."""

    kind: str  # "input", "attribute", "constant", "module", "method" or "function"
    target: Any  # dotted name, tensor, method name or function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]  # the steps whose results it takes
    needs: frozenset[int]  # `inputs`, and steps that wrote into these in between
    writes: frozenset[int]  # memory it changes: roots
    roots: frozenset[int]  # the steps that made the memory its result may lie in
    inside: tuple[str, ...]  # the traced modules that call it, outermost first

    def run(self, owner: nn.Module, values: Mapping[int, Any]) -> Any:
        """The result, with the modules, parameters and buffers of `owner` as they are now."""
        if self.kind == "constant":
            return self.target
        if self.kind == "attribute":
            return operator.attrgetter(self.target)(owner)
        args = fill(self.args, values)
        kwargs = fill(self.kwargs, values)
        if self.kind == "module":
            return owner.get_submodule(self.target)(*args, **kwargs)
        if self.kind == "method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def describe(self, owner: nn.Module) -> str:
        """For messages: the module and its class, or the operation."""
        if self.kind == "module":
            return f"{self.target} ({type(owner.get_submodule(self.target)).__name__})"
        if self.kind == "method":
            return f".{self.target}()"
        if self.kind == "function":
            return f"{getattr(self.target, '__name__', self.target)}()"
        return {"input": "its input", "constant": "a constant"}.get(self.kind, str(self.target))


def fill(value: Any, values: Mapping[int, Any]) -> Any:
    """The arguments with results in place of Refs."""
    if isinstance(value, Ref):
        return values[value.index]
    if isinstance(value, tuple):
        return tuple(fill(item, values) for item in value)
    if isinstance(value, list):
        return [fill(item, values) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(fill(item, values) for item in (value.start, value.stop, value.step)))
    return value


@dataclass(frozen=True)
class Program:
    """The steps of one module's forward, in order; step 0 is its input."""

    steps: tuple[Step, ...]
    output: Any  # a Ref, or what else forward returns
    closed: Mapping[str, str]  # the modules that could not be traced, and why

    def written_after(self, index: int) -> frozenset[int]:
        """The steps that write into the result of step `index` after it was there."""
        return _writers(self.steps, index)


def program(graph: fx.Graph, root: nn.Module, closed: Mapping[str, str]) -> Program:
    """What a graph computes; the module that was traced is the child `block` of `root`."""
    steps: list[Step] = []
    index: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            return Program(tuple(steps), _refs(node.args[0], index), closed)
        index[node] = len(steps)
        steps.append(_step(node, root, steps, index))
    raise AssertionError("a graph ends with its output")


def _refs(value: Any, index: Mapping[fx.Node, int]) -> Any:
    """Arguments as plain containers with Refs; torch.fx has read-only ones with nodes."""
    if isinstance(value, fx.Node):
        return Ref(index[value])
    if isinstance(value, tuple):
        items = [_refs(item, index) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_refs(item, index) for item in value]
    if isinstance(value, dict):
        return {key: _refs(item, index) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_refs(item, index) for item in (value.start, value.stop, value.step)))
    return value


def _step(node: fx.Node, root: nn.Module, steps: list[Step], index: Mapping[fx.Node, int]) -> Step:
    inputs = tuple(index[other] for other in node.all_input_nodes)
    kinds = {"placeholder": "input", "get_attr": "attribute", "call_module": "module"}
    kind = kinds.get(node.op, node.op.removeprefix("call_"))
    target: Any = node.target
    if kind == "attribute" and not str(target).startswith("block."):
        kind, target = "constant", getattr(root, str(target))
    elif kind in ("attribute", "module"):
        target = str(target).removeprefix("block.")
    module = root.get_submodule(str(node.target)) if kind == "module" else None
    written, shared = _written(node, module), _shared(node, module)
    writes = frozenset(root for other in written for root in steps[index[other]].roots)
    roots = writes.union(*(steps[index[other]].roots for other in shared)) or frozenset({len(steps)})
    stack = node.meta.get("nn_module_stack", {}).values()
    names = [name for name, _ in stack if name not in ("", "block") and name != node.target]
    inside = tuple(name.removeprefix("block.") for name in names)
    needs = frozenset(inputs).union(*(_writers(steps, i) for i in inputs))
    args, kwargs = _refs(tuple(node.args), index), _refs(dict(node.kwargs), index)
    return Step(kind, target, args, kwargs, inputs, needs, writes, roots, inside)


def _writers(steps: Collection[Step], index: int) -> frozenset[int]:
    """The steps so far that wrote into the result of step `index` after it was there."""
    roots = list(steps)[index].roots
    return frozenset(i for i, step in enumerate(steps) if i > index and step.writes & roots)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """By name, as far as the function tells its names."""
    try:
        return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in
        return dict(node.kwargs)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _written(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The values that a step changes in place."""
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    if module is not None:
        return first if getattr(module, "inplace", False) is True else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = _name(node)
    if name in (*WRITING_OPERATORS, "setitem", "delitem") or (name.endswith("_") and not name.endswith("__")):
        return first
    arguments = _arguments(node) if node.op == "call_function" else dict(node.kwargs)
    found = first if arguments.get("inplace") else []
    also = [arguments.get("out")]
    if arguments.get("training") or arguments.get("use_input_stats"):  # F.batch_norm, F.instance_norm
        also += [arguments.get("running_mean"), arguments.get("running_var")]
    return [*found, *(value for value in also if isinstance(value, fx.Node))]


def _shared(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The values whose memory the result of a step may share."""
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    if module is not None:
        return first if isinstance(module, _VIEW_MODULES) else []
    if node.op not in ("call_function", "call_method"):
        return []
    if _name(node) == "getattr":
        return first if node.args[1] in _VIEW_ATTRIBUTES else []
    return first if _name(node) in _VIEW_NAMES else []
