"""Errors as a Python caller wants them: a ValueError of one line, as the command line prints it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_line_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator: what is wrong with settings, several lines in pydantic's words, becomes one of ours."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            if "\n" not in str(error):
                raise
            from train.cli import one_line

            raise ValueError(one_line(error)) from error

    return call
