"""Foreign JSON is checked once, when it is read: pydantic models of what we use of it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from pipeline.text import short

from .text_files import number

Model = TypeVar("Model", bound=BaseModel)


def _number(value: Any) -> float:
    """A finite number, or a text that is one."""
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"got {short(value)}, want a number")
    try:
        return number("", value)
    except OverflowError:
        raise ValueError("got a number of too many digits") from None


def _text(value: Any) -> str:
    """A text; numbers and truth values are what JavaScript would show."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"got {short(value)}, want a text")
    return str(value)


Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]


def parsed(model: type[Model], document: Any, where: Path | str) -> Model:
    """The document as a model; ValueError, one line, that names the first thing that is wrong in it."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        at = short(".".join(str(part) for part in problem["loc"])).strip("'")
        message = problem["msg"].removeprefix("Value error, ").removeprefix(": ")
        raise ValueError(f"{where}: {at or 'the whole'}: {short(Exception(message), 160)}") from None
