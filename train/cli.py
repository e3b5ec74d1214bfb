"""Command-line conventions: exit codes, --json, errors, Ctrl-C, progress bars.

Exit codes: 0 all done, 1 some inputs failed (the others are done), 2 wrong usage or bad input, 130 Ctrl-C.
Results go to stdout, as text or (--json) as one JSON document; progress, remarks and errors go to stderr.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
from pydantic import ValidationError
from tqdm import tqdm

from pipeline.files import check_writable, write_json
from pipeline.lock import Holder
from pipeline.text import bounded, plain_number
from settings_group import explain

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Item = TypeVar("Item")

PATH = click.Path(path_type=Path)  # the type of an option that is a file or a folder


def write_line(text: str, *, err: bool) -> None:
    """Write a line to stdout, or to stderr; above the progress bars where there are any."""
    with tqdm.external_write_mode(file=sys.stderr if err else sys.stdout):
        click.echo(text, err=err)


def to_stderr(text: str) -> None:
    """Write a line for people on stderr."""
    click.echo(bounded(text), err=True)


def one_line(error: Exception, where: Path | None = None) -> str:
    """The error as one line; all that is wrong with settings is joined into one.

    where: of an OSError that names no file, as that of a write to a full disk.
    """
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, OSError) and (path := error.filename or where) is not None:
        return f"{path}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _exit_at_once(*_: object) -> None:
    os._exit(130)


def _guard_exit() -> None:
    """From here on Ctrl-C ends the process at once: what follows is the work of libraries."""
    signal.signal(signal.SIGINT, _exit_at_once)


@contextmanager
def exit_on_ctrl_c(advice: str = "") -> Iterator[None]:
    """Ctrl-C within becomes one line on stderr and exit code 130; advice: added to the line.

    Pressed again, it ends the process at once. So it does while a library is imported: torch's import, for
    one, swallows an interrupt in that of numpy, and the command would go on, or fail later, with half of it.
    """
    below_the_bar = "\n" if sys.stderr.isatty() else ""
    line = f"{below_the_bar}interrupted{advice and '; ' + advice}"
    pressed = printed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if not pressed and not _importing(frame):
            pressed = True
            signal.default_int_handler(number, frame)
        if not printed:
            os.write(2, f"{line}\n".encode())  # not by sys.stderr, which may be in the middle of a line
        _exit_at_once()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("LEANTAD_DEBUG"):
            raise
        printed = True
        click.echo(line, err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, previous)


def _reader_is_gone() -> bool:
    """Whether whatever read stdout has ended, as `head` does once it has its lines."""
    stdout = select.poll()
    stdout.register(1, 0)
    return any(event & select.POLLERR for _, event in stdout.poll(0))


def refuse_usage(error: click.UsageError) -> NoReturn:
    """Say in one line what is wrong with a command line, and what shows the right ones; exit code 2."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error  # the help itself
    text = " ".join(error.format_message().split())
    stop = "" if text.endswith((".", "?")) else "."
    Output().error(f"{text[0].lower()}{text[1:]}{stop} See {click.get_current_context().command_path} --help")
    raise click.exceptions.Exit(2)


def _refuse_odd_number(text: str, ctx: click.Context, param: click.Parameter) -> None:
    try:
        plain_number(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None


class Command(click.Command):
    """A click command whose ValueError, OSError, MemoryError become `error: ...` on stderr, exit code 2.

    Ctrl-C becomes exit code 130, see exit_on_ctrl_c. Set LEANTAD_DEBUG=1 to see the traceback instead. The
    help states the default of every option that has one.
    """

    def __init__(self, *args: Any, interrupted: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.interrupted = interrupted
        self.context_settings["show_default"] = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own, but that a number is what a person reads as one: Python reads 0_2 as 2."""
        try:
            self._refuse_odd_numbers(ctx, args)
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            refuse_usage(error)

    def _refuse_odd_numbers(self, ctx: click.Context, args: list[str]) -> None:
        given, _, params = self.make_parser(ctx).parse_args(list(args))
        numeric = (
            p for p in params if isinstance(p.type, (click.types.FloatParamType, click.types.IntParamType))
        )
        for param in numeric:
            values = given.get(param.name or "")
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, str):
                    _refuse_odd_number(value, ctx, param)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with exit_on_ctrl_c(self.interrupted):
                return super().invoke(ctx)
        except (ValueError, OSError, MemoryError) as error:
            if os.environ.get("LEANTAD_DEBUG"):
                raise
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                raise  # click ends without a word where nobody reads
            Output().error(one_line(error))
            sys.stdout.flush()
            ctx.exit(2)
        finally:
            atexit.unregister(_guard_exit)
            atexit.register(_guard_exit)  # the last to be registered is the first to be called


def written(write: Callable[[], None], what: str) -> str | None:
    """Write a result; why `what` could not be written, if so: what was computed is then still printed."""
    try:
        write()
    except OSError as error:
        return f"{what} not written ({one_line(error)})"
    return None


def exit_with(ctx: click.Context, problems: Sequence[str]) -> NoReturn:
    """Name the inputs that failed, a line each, and exit: code 1, or 0 if there are none."""
    for line in problems:
        Output().error(line)
    ctx.exit(1 if problems else 0)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Click decorator: adds --quiet/-q and --json, of which the argument `output` is made, see Output."""

    @wraps(function)
    def command(*args: Any, quiet: bool, as_json: bool, **values: Any) -> Any:
        return function(*args, output=Output(quiet, as_json), **values)

    json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
    text = "Errors only: no progress, no table."
    return click.option("--quiet", "-q", is_flag=True, help=text)(json_option(command))


def force_option(function: Decorated) -> Decorated:
    """Click decorator: adds --force (argument `force`), see check_new."""
    return click.option("--force", is_flag=True, help="Replace results that are there already.")(function)


def trust_option(function: Decorated) -> Decorated:
    """Click decorator: adds --trust (argument `trust`), see train/trust.py."""
    text = "Use all that a file of somebody else names: commands, URLs, files elsewhere."
    return click.option("--trust", is_flag=True, help=text)(function)


def local_rank_option(function: Decorated) -> Decorated:
    """Click decorator: LOCAL_RANK, unless set, is the --local_rank that the deepspeed launcher appends."""

    def set_variable(_: click.Context, __: click.Parameter, value: int | None) -> None:
        if value is not None:
            os.environ.setdefault("LOCAL_RANK", str(value))

    options: dict[str, Any] = {"type": int, "hidden": True, "expose_value": False, "callback": set_variable}
    return click.option("--local_rank", help="Appended by the deepspeed launcher.", **options)(function)


def launched_as_first() -> bool:
    """Whether this is the first process of a launch, or the only one; known before there is a group."""
    return os.environ.get("RANK", "0") == "0"


def document_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Click decorator: output_options, with --out for the document and --force.

    Before the work, ValueError if --out, or --plot where the command has it (`plot_file`), cannot be written.
    """

    @wraps(function)
    def command(*args: Any, output: Output, out: Path | None, force: bool, **values: Any) -> Any:
        for path in (out, values.get("plot_file")):
            if path is not None:
                check_new_file(path, force=force)
        return function(*args, output=replace(output, out=out), **values)

    text = "Write the JSON document to this file, too."
    out_option = click.option("--out", type=PATH, help=text)
    return out_option(force_option(output_options(command)))


def options_of(command: click.Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options and arguments of a command that is called from Python, as the command line would give them.

    given: values by the name of the option (short_side for --short-side); a mapping for --set becomes
    key=value. Names that the command does not have are left out. Returns values by the name of the parameter,
    but for --quiet, --json and the launcher's. ValueError naming a value that the command line would refuse.
    """
    values, context = {}, click.Context(command)
    for parameter in command.params:
        name = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
        if name in ("quiet", "json", "local_rank"):
            continue
        value = given.get(name)
        if isinstance(value, Mapping):
            value = [f"{key}={json.dumps(item, default=str)}" for key, item in value.items()]
        elif value is not None and (parameter.multiple or parameter.nargs == -1):
            value = [value] if isinstance(value, (str, Path)) else list(value)
        try:
            values[parameter.name or ""] = parameter.type_cast_value(context, value)
        except click.BadParameter as error:
            raise ValueError(f"{name}: {error.message}") from None
    return values


def check_new(path: Path, *, force: bool) -> None:
    """ValueError if `path` holds a result already, unless `force`; an empty folder holds none.

    Call it before the work: a refusal must not cost an hour of computing.
    """
    taken = any(each.name != ".lock" for each in path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise ValueError(f"{path}: exists; --force replaces it, or give another path")


def check_new_file(path: Path, *, force: bool) -> None:
    """check_new for a file, whose folder must exist and take it."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, want the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no ordinary file, which a result could replace; give another path")
    check_new(path, force=force)
    check_writable(path)


@dataclass(frozen=True)
class Output:
    """Prints everything that a command tells a person; built from the options that output_options adds.

    Lines appear above a progress bar that is being drawn. out: a file for the document, too.
    """

    quiet: bool = False
    as_json: bool = False
    out: Path | None = None

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

    def document(self, value: Any) -> None:
        """The result for machines: with --json one JSON document on stdout, and in the file `out` if given.

        NaN and infinity become null.
        """
        if self.as_json:
            write_line(json.dumps(plain(value), indent=1, allow_nan=False), err=False)
        if self.out is not None:
            write_json(self.out, plain(value))

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


def remark_on_lock(output: Output, where: Path, last: Holder | None) -> None:
    """Say that the last process that wrote there did not end by itself, if it did not."""
    if last is not None:
        output.remark(f"{where}: {last} wrote here and did not end by itself; going on in its place")


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
