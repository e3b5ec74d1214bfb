"""Command-line conventions: exit codes, --json, errors, Ctrl-C, progress bars.

Exit codes: 0 all done, 1 some inputs failed (the others are done), 2 wrong usage or bad input, 130 Ctrl-C.
Results go to stdout, as text or (--json) as one JSON document; progress, remarks and errors go to stderr.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
from pydantic import ValidationError
from tqdm import tqdm

from pipeline.files import write_json
from pipeline.text import bounded
from settings_group import explain

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Item = TypeVar("Item")


def write_line(text: str, *, err: bool) -> None:
    """Write a line to stdout, or to stderr; above the progress bars where there are any."""
    with tqdm.external_write_mode(file=sys.stderr if err else sys.stdout):
        click.echo(text, err=err)


def to_stderr(text: str) -> None:
    """Write a line for people on stderr."""
    click.echo(bounded(text), err=True)


def one_line(error: Exception) -> str:
    """The error as one line; all that is wrong with settings is joined into one."""
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def exit_on_ctrl_c(advice: str = "") -> Iterator[None]:
    """Ctrl-C within becomes one line on stderr and exit code 130; advice: added to the line.

    While a library is imported the process ends at once: torch's import, for one, swallows an interrupt in
    that of numpy, and the command would go on, or fail later, with half of numpy.
    """

    def print_interrupted() -> None:
        below_the_bar = "\n" if sys.stderr.isatty() else ""
        click.echo(f"{below_the_bar}interrupted{advice and '; ' + advice}", err=True)

    def handle(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            print_interrupted()
            os._exit(130)
        signal.default_int_handler(number, frame)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("LEANTAD_DEBUG"):
            raise
        print_interrupted()
        raise click.exceptions.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, previous)


class Command(click.Command):
    """A click command whose ValueError, OSError, MemoryError become `error: ...` on stderr, exit code 2.

    Ctrl-C becomes exit code 130, see exit_on_ctrl_c. Set LEANTAD_DEBUG=1 to see the traceback instead.
    """

    def __init__(self, *args: Any, interrupted: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.interrupted = interrupted

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with exit_on_ctrl_c(self.interrupted):
                return super().invoke(ctx)
        except (ValueError, OSError, MemoryError) as error:
            if os.environ.get("LEANTAD_DEBUG"):
                raise
            Output().error(one_line(error))
            sys.stdout.flush()
            ctx.exit(2)


def exit_with(ctx: click.Context, problems: Sequence[str]) -> NoReturn:
    """Name the inputs that failed, a line each, and exit: code 1, or 0 if there are none."""
    for line in problems:
        Output().error(line)
    ctx.exit(1 if problems else 0)


def output_options(function: Decorated) -> Decorated:
    """Click decorator: adds --quiet/-q (argument `quiet`) and --json (argument `as_json`), see Output."""
    quiet = click.option("--quiet", "-q", is_flag=True, help="Errors only: no progress, no table.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
    return quiet(as_json(function))


def force_option(function: Decorated) -> Decorated:
    """Click decorator: adds --force (argument `force`), see check_new."""
    return click.option("--force", is_flag=True, help="Replace results that are there already.")(function)


def document_options(function: Decorated) -> Decorated:
    """Click decorator: adds --out (argument `out`), --force, --quiet and --json, see Output.document."""
    help_text = "Write the JSON document to this file, too."
    out = click.option("--out", type=click.Path(path_type=Path), help=help_text)
    return out(force_option(output_options(function)))


def check_new(path: Path, *, force: bool) -> None:
    """ValueError if `path` holds a result already, unless `force`; an empty folder holds none.

    Call it before the work: a refusal must not cost an hour of computing.
    """
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise ValueError(f"{path}: exists; --force replaces it, or give another path")


def check_new_file(path: Path, *, force: bool) -> None:
    """check_new for a file, whose folder must exist."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, want the name of a file")
    check_new(path, force=force)


@dataclass(frozen=True)
class Output:
    """Prints everything that a command tells a person; built from the options that output_options adds.

    Lines appear above a progress bar that is being drawn.
    """

    quiet: bool = False
    as_json: bool = False

    @property
    def no_bar(self) -> bool | None:
        """For tqdm's `disable`: with None, tqdm draws its bar (on stderr) on a terminal only."""
        return True if self.quiet else None

    def say(self, text: str) -> None:
        """A line for people: on stdout, with --json on stderr, with --quiet nowhere."""
        if not self.quiet:
            write_line(text, err=self.as_json)

    def remark(self, text: str) -> None:
        """A line beside the result: on stderr, with --quiet nowhere."""
        if not self.quiet:
            write_line(bounded(text), err=True)

    def warn(self, text: str) -> None:
        """What may make the result worse than it could be: on stderr, with --quiet nowhere."""
        self.remark(f"warning: {text}")

    def error(self, text: str) -> None:
        """What failed: on stderr, with --quiet too."""
        write_line(bounded(f"error: {text}"), err=True)

    def stopped(self, text: str) -> None:
        """That the command ends before its work does, and how to go on: on stderr, with --quiet too."""
        write_line(text, err=True)

    def progress(
        self, items: Iterable[Item], title: str, *, unit: str, total: int | None = None
    ) -> Iterable[Item]:
        """The items, counted by a progress bar as they are used; see no_bar."""
        bar: Iterable[Item] = tqdm(items, desc=title, unit=unit, total=total, disable=self.no_bar)
        return bar

    def document(self, value: Any, out: Path | None = None) -> None:
        """The result for machines: with --json one JSON document on stdout, and in the file `out` if given.

        NaN and infinity become null.
        """
        if self.as_json:
            write_line(json.dumps(plain(value), indent=1, allow_nan=False), err=False)
        if out is not None:
            write_json(out, plain(value))

    @contextmanager
    def others_on_stderr(self) -> Iterator[None]:
        """With --json, what libraries and compilers print meanwhile goes to stderr, not to stdout."""
        if not self.as_json:
            yield
            return
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(2, 1)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)


def plain(value: Any) -> Any:
    """The value with tuples as lists, paths as text, and numbers that JSON does not have as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
