"""The arguments of a block besides its state: held for the call, the same when a branch runs again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..recompute import autocast_dtype


class RefusedError(ValueError):
    """A block is not what its trace says; `name` is the block's."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(list(vars(value).values()))


class _State:
    """In arguments: the block's state itself, which a block may be given a second time, as its shortcut."""


STATE = _State()


@dataclass(frozen=True)
class Arguments:
    """What a block is called with besides its state."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def besides(state: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Those of a call with this state."""

        def known(value: Any) -> Any:
            return STATE if value is state and isinstance(value, Tensor) else value

        return Arguments(tuple(map(known, args)), {name: known(value) for name, value in kwargs.items()})

    def call(self, function: Callable[..., Any], *before: Any) -> Any:
        """function(*before, *args, **kwargs); the last of `before` is the state."""

        def filled(value: Any) -> Any:
            return before[-1] if value is STATE else value

        kwargs = {name: filled(value) for name, value in self.kwargs.items()}
        return function(*before, *map(filled, self.args), **kwargs)

    def given(self, block: nn.Module) -> dict[str, Any]:
        """Those that are not at their default, nor None or False, by name of forward's parameters."""
        if not self.args and not self.kwargs:
            return {}
        signature = inspect.signature(partial(type(block).forward, block))
        bound = signature.bind(None, *self.args, **self.kwargs).arguments
        parameters = list(signature.parameters.values())
        values = dict(list(bound.items())[1:])
        if parameters[0].kind == parameters[0].VAR_POSITIONAL:
            values |= {f"{parameters[0].name}[{i}]": v for i, v in enumerate(self.args, 1)}
        for parameter in parameters:
            if parameter.kind == parameter.VAR_KEYWORD:
                values |= values.pop(parameter.name, {})
            elif parameter.kind == parameter.VAR_POSITIONAL:
                values |= {f"{parameter.name}[{i}]": v for i, v in enumerate(values.pop(parameter.name, ()))}
        defaults = {parameter.name: parameter.default for parameter in parameters}
        return {name: v for name, v in values.items() if not _is_default(v, defaults.get(name))}

    def check(self, name: str, block: nn.Module) -> None:
        """ValueError if a gradient would be lost: an argument that carries one into the block."""
        for argument, value in self.given(block).items():
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(value)):
                raise RefusedError(
                    name,
                    f"it is called with {argument}, which carries a gradient into the block; a "
                    "rewired block hands a gradient to its state alone: detach it, or leave the block plain",
                )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return list(tensors_in([self.args, self.kwargs]))


def split_state(name: str, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The state, the first argument of forward however it is passed, and the other Arguments."""
    if args:
        return args[0], Arguments.besides(args[0], args[1:], kwargs)
    names = [name for name in inspect.signature(type(block).forward).parameters if name != "self"]
    if not names or names[0] not in kwargs:
        raise RefusedError(name, "it is called without its state")
    others = dict(kwargs)
    state = others.pop(names[0])
    return state, Arguments.besides(state, (), others)


NO_ARGUMENTS = Arguments()


def _is_default(value: Any, default: Any) -> bool:
    if value is None or value is False or value is default:
        return True
    return not isinstance(value, Tensor) and type(value) is type(default) and bool(value == default)


class UnknownArgumentError(Exception):
    """An argument that is not known to stay as it is."""


def signature_of(value: Any) -> Any:
    """A hashable description: equal for values with which a block computes by the same operations."""
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype, value.device
    if value is STATE:
        return "state"
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return type(value).__name__, value
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(signature_of(item) for item in value)
    if isinstance(value, dict):
        return "dict", tuple((key, signature_of(item)) for key, item in value.items())
    raise UnknownArgumentError(f"a {type(value).__name__}")


def call_signature(name: str, x: Tensor, arguments: Arguments) -> Any:
    """That of block(x, ...) under autocast as it is. Raises ValueError for arguments of unknown kinds."""
    autocast = autocast_dtype(x.device.type)
    try:
        return signature_of(x), signature_of(arguments.args), signature_of(arguments.kwargs), autocast
    except UnknownArgumentError as error:
        raise RefusedError(name, f"it is called with {error}, want tensors, numbers and texts") from error
