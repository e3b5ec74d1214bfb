"""Give every tensor of a dict its new name, and let no two have the same."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def rename(weights: dict[str, Tensor], new_name: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The same tensors under new names, in the same order; None leaves a tensor out.

    Raises ValueError if two tensors would get one name.
    """
    renamed: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for name, tensor in weights.items():
        new = new_name(name)
        if new is None:
            continue
        if new in renamed:
            raise ValueError(
                f"weights: {sources[new]!r} and {name!r} are both {new!r}, want one of them; "
                "keep only the encoder's in the file"
            )
        renamed[new], sources[new] = tensor, name
    return renamed


def strip(name: str, *prefixes: str) -> str:
    """The name without those prefixes that it has, taken off in the given order."""
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name
