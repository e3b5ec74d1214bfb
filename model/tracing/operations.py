"""The operations of a traced module: what each of them computes, reads, and writes in place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

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
# Attributes and methods of a tensor that read nothing of its values.
METADATA = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "grad_fn", "is_leaf"}
    | {"size", "dim", "stride", "numel", "is_contiguous", "is_floating_point", "__len__", "_version"}
    | {"element_size", "nbytes", "itemsize", "is_complex", "names", "is_sparse", "is_mps", "is_xpu"}
)
# Methods and functions that may return their argument or a view of it.
_VIEWS = """alpha_dropout as_strided bfloat16 broadcast_to chunk conj contiguous cpu cuda detach diagonal
double dropout dropout1d dropout2d dropout3d expand expand_as feature_alpha_dropout flatten float getitem half
hsplit movedim moveaxis narrow permute positive ravel real reshape reshape_as select split squeeze swapaxes
swapdims t tensor_split to transpose type type_as unbind unflatten unfold unsqueeze view view_as view_as_real
vsplit"""
_VIEW_NAMES = frozenset(_VIEWS.split())
_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class ResultOf:
    """In the arguments of an operation: the result of another one, by its index."""

    index: int


@dataclass(frozen=True)
class Operation:
    """One operation. `args` and `kwargs` hold ResultOf, in containers too."""

    kind: str  # "input", "argument", "attribute", "constant", "module", "method" or "function"
    target: Any  # number among the arguments' tensors, dotted name, tensor, method name or function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]  # the operations whose results it takes
    needs: frozenset[int]  # `inputs`, and operations that wrote into these in between
    writes: frozenset[int]  # memory it changes, as roots
    roots: frozenset[int]  # the operations that allocated the memory of its result
    callers: tuple[str, ...]  # the traced modules whose forward it is part of, outermost first

    def run(self, owner: nn.Module, values: Mapping[int, Any], arguments: Sequence[Tensor] = ()) -> Any:
        """The result, with the modules, parameters and buffers of `owner` as they are now.

        arguments: the tensors with which `owner` was called besides its input.
        """
        if self.kind == "argument":
            return arguments[self.target]
        if self.kind == "constant":
            return self.target
        if self.kind == "attribute":
            return operator.attrgetter(self.target)(owner)
        args = insert_results(self.args, values)
        kwargs = insert_results(self.kwargs, values)
        if self.kind == "module":
            return owner.get_submodule(self.target)(*args, **kwargs)
        if self.kind == "method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    @property
    def name(self) -> str:
        """Of the method or function that it calls; empty for other kinds."""
        if self.kind == "method":
            return str(self.target)
        return getattr(self.target, "__name__", "") if self.kind == "function" else ""

    def describe(self, owner: nn.Module) -> str:
        """For messages: the module and its class, or the operation."""
        if self.kind == "module":
            return f"{self.target} ({type(owner.get_submodule(self.target)).__name__})"
        if self.kind == "method":
            return f".{self.target}()"
        if self.kind == "function":
            return f"{getattr(self.target, '__name__', self.target)}()"
        return {"input": "its input", "argument": "an argument", "constant": "a constant"}.get(
            self.kind, str(self.target)
        )


def insert_results(value: Any, values: Mapping[int, Any]) -> Any:
    """The arguments with `values`, results by index, in place of ResultOf."""
    if isinstance(value, ResultOf):
        return values[value.index]
    if isinstance(value, tuple):
        return tuple(insert_results(item, values) for item in value)
    if isinstance(value, list):
        return [insert_results(item, values) for item in value]
    if isinstance(value, dict):
        return {key: insert_results(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(insert_results(item, values) for item in (value.start, value.stop, value.step)))
    return value


def result_indices(value: Any) -> Iterator[int]:
    """The operations whose results a value holds."""
    if isinstance(value, ResultOf):
        yield value.index
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from result_indices(item)


@dataclass(frozen=True)
class Program:
    """The operations of one module's forward, in order; operation 0 is its input."""

    operations: tuple[Operation, ...]
    output: Any  # a ResultOf, or what else forward returns
    untraceable: Mapping[str, str]  # the modules that could not be traced, and why


def program_of(graph: fx.Graph, root: nn.Module, untraceable: Mapping[str, str]) -> Program:
    """The program of a graph; the module that was traced is the child `block` of `root`."""
    operations: list[Operation] = []
    index: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            return Program(tuple(operations), _result_references(node.args[0], index), untraceable)
        index[node] = len(operations)
        operations.append(_operation(node, root, operations, index))
    raise AssertionError("a graph ends with its output")


def _result_references(value: Any, index: Mapping[fx.Node, int]) -> Any:
    """Arguments as plain containers with ResultOf; torch.fx has read-only ones with nodes."""
    if isinstance(value, fx.Node):
        return ResultOf(index[value])
    if isinstance(value, tuple):
        items = [_result_references(item, index) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_result_references(item, index) for item in value]
    if isinstance(value, dict):
        return {key: _result_references(item, index) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_result_references(item, index) for item in (value.start, value.stop, value.step)))
    return value


def _operation(
    node: fx.Node, root: nn.Module, earlier: list[Operation], index: Mapping[fx.Node, int]
) -> Operation:
    inputs = tuple(index[other] for other in node.all_input_nodes)
    kinds = {"placeholder": "input", "get_attr": "attribute", "call_module": "module"}
    kind = kinds.get(node.op, node.op.removeprefix("call_"))
    target: Any = node.target
    if kind == "attribute" and not str(target).startswith("block."):
        kind, target = "constant", getattr(root, str(target))
    elif kind in ("attribute", "module"):
        target = str(target).removeprefix("block.")
    elif kind == "input" and earlier:
        kind, target = "argument", len(earlier) - 1
    module = root.get_submodule(str(node.target)) if kind == "module" else None
    written, aliased = _written_arguments(node, module), _aliased_arguments(node, module)
    writes = frozenset(root for other in written for root in earlier[index[other]].roots)
    roots = writes.union(*(earlier[index[other]].roots for other in aliased)) or frozenset({len(earlier)})
    stack = node.meta.get("nn_module_stack", {}).values()
    names = [name for name, _ in stack if name not in ("", "block") and name != node.target]
    callers = tuple(name.removeprefix("block.") for name in names)
    needs = frozenset(inputs).union(*(_writers(earlier, i) for i in inputs))
    args, kwargs = _result_references(tuple(node.args), index), _result_references(dict(node.kwargs), index)
    return Operation(kind, target, args, kwargs, inputs, needs, writes, roots, callers)


def _writers(operations: Sequence[Operation], index: int) -> frozenset[int]:
    """The operations so far that wrote into the result of operation `index` after it was made."""
    roots = operations[index].roots
    return frozenset(i for i, other in enumerate(operations) if i > index and other.writes & roots)


def _arguments_by_name(node: fx.Node) -> dict[str, Any]:
    """The arguments by name; of a built-in function, whose names are unknown, those passed by keyword."""
    assert not isinstance(node.target, str)
    try:
        return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return dict(node.kwargs)


def _name_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _written_arguments(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The arguments that an operation changes in place."""
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    if module is not None:
        return first if getattr(module, "inplace", False) is True else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = _name_of(node)
    if name in (*WRITING_OPERATORS, "setitem", "delitem") or (name.endswith("_") and not name.endswith("__")):
        return first
    arguments = _arguments_by_name(node) if node.op == "call_function" else dict(node.kwargs)
    written = first if arguments.get("inplace") else []
    also = [arguments.get("out")]
    if arguments.get("training") or arguments.get("use_input_stats"):  # F.batch_norm, F.instance_norm
        also += [arguments.get("running_mean"), arguments.get("running_var")]
    return [*written, *(value for value in also if isinstance(value, fx.Node))]


def _aliased_arguments(node: fx.Node, module: nn.Module | None) -> list[fx.Node]:
    """The arguments whose memory the result of an operation may share."""
    first = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    if module is not None:
        return first if isinstance(module, _VIEW_MODULES) else []
    if node.op not in ("call_function", "call_method"):
        return []
    if _name_of(node) == "getattr":
        return first if node.args[1] in _VIEW_ATTRIBUTES else []
    return first if _name_of(node) in _VIEW_NAMES else []
