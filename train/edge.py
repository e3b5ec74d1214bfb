"""The edge between the code and a person at a terminal: bad input becomes one line and exit code 2."""

from __future__ import annotations

import os
import sys

import click
from pydantic import ValidationError


def one_line(error: Exception) -> str:
    """The error as one line; pydantic's list of problems is joined into one."""
    if isinstance(error, ValidationError):
        problems = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "settings"
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{where}: {message}" + (f" (got {item['input']!r})" if item["loc"] else ""))
        return "; ".join(problems)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


class Command(click.Command):
    """A click command whose ValueError and OSError become `error: ...` on stderr and exit code 2.

    Set LEANTAD_DEBUG=1 to see the traceback instead.
    """

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if os.environ.get("LEANTAD_DEBUG"):
                raise
            click.echo(f"error: {one_line(error)}", err=True)
            sys.stdout.flush()
            ctx.exit(2)
