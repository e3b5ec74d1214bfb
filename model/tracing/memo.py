"""What a block keeps in attributes for later calls, such as a table of positions for the size that it got.

That is harmless if it is made once and of nothing but parameters and sizes: a memo. The recorded operations
make it anew.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .graph import contents

Attributes = dict[str, tuple[Any, list[Any] | None]]  # dotted name: value, and what a list or dict holds
OF_MODULES = frozenset(vars(nn.Module()))


def attributes_of(block: nn.Module) -> Attributes:
    """All attributes of all modules, as they are now."""
    return {
        f"{name}.{key}".strip("."): (value, contents(value))
        for name, module in block.named_modules()
        for key, value in vars(module).items()
    }


def assigned_since(block: nn.Module, before: Attributes) -> dict[str, list[Any]]:
    """By name of the attribute, the values that it, its list or dict was given; none if it was removed."""
    found: dict[str, list[Any]] = {name: [] for name in before}
    now = attributes_of(block)
    for name, (value, held) in now.items():
        old, old_held = before.get(name, (None, None))
        if name not in before or old is not value:
            found[name] = [value]
        elif held is not None and old_held is not None:
            known = {id(item) for item in _values(old_held)}
            found[name] = [item for item in _values(held) if id(item) not in known]
            if not found[name] and len(held) == len(old_held):
                del found[name]
        else:
            del found[name]
    return found


def _values(held: list[Any]) -> list[Any]:
    """Without the keys of a dict, whose contents are pairs."""
    return [item[1] if isinstance(item, tuple) and len(item) == 2 else item for item in held]


def empty_memos(block: nn.Module) -> bool:
    """Put an empty dict in the place of every one that holds tensors alone; whether there was any.

    What a network that has run keeps in it may be of parameters that have changed since.
    """
    found = False
    for module in block.modules():
        for key, value in list(vars(module).items()):
            if key in OF_MODULES or type(value) is not dict or not value:
                continue
            if all(isinstance(item, Tensor) for item in value.values()):
                vars(module)[key], found = {}, True
    return found
