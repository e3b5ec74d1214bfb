"""Text, numbers and tables as labelling tools and spreadsheets leave them on disk."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipeline.annotations import SAVE_AS
from pipeline.text import short

LARGEST_FILE = 256 << 20  # bytes: annotations of hundreds of hours are some megabytes
LARGEST_SECONDS = 1e9  # what is beyond is no time in a video
PACKED = (b"PK\x03\x04", b"\x1f\x8b")  # what .zip, .xlsx and .ods begin with, and .gz
LINE_END = re.compile("\r\n|\r|\n")
EXCEL_SEPARATOR = re.compile(r'\A"?sep=."?(?=[\r\n])')  # a first line for Excel alone
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+", re.ASCII)
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d*)?)", re.ASCII)
SEPARATORS = (",", ";", "\t", "|")
# As editors write this rate, with two digits: over an hour that is 0.6 s. exact_rate knows it with three.
FILM = {Fraction(23.98): Fraction(24000, 1001)}
HEADER_LINES = 60  # BORIS 7 wrote some lines about the observation above its table


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark, which spreadsheets write.

    A first line `sep=;` is left empty: the separator shows in the header.
    Raises ValueError for one that is too large to be annotations, or is other text or none.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: {size >> 20} MiB, want annotations of at most {LARGEST_FILE >> 20} MiB")
    data = path.read_bytes()
    if data.startswith(PACKED):
        raise ValueError(f"{path}: is packed, or a spreadsheet; unpack it, or save it as CSV")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text; {SAVE_AS}") from None
    if "\0" in text:
        raise ValueError(f"{path}: has zero bytes, want text; save the file as UTF-8")
    return EXCEL_SEPARATOR.sub("", text)


def lines_of(text: str) -> list[str]:
    """The lines of a text, whatever system's line ends it has."""
    return LINE_END.split(text)


def number(where: str, text: str | float) -> float:
    """A finite number, with a point or a decimal comma; ValueError naming `where` for anything else."""
    if isinstance(text, bool):
        raise ValueError(f"{where}: got {short(text)}, want a number")
    if isinstance(text, str):
        if not NUMBER.fullmatch(text.strip()):
            raise ValueError(f"{where}: got {short(text)}, want a number")
        text = text.strip().replace(",", ".")
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST_SECONDS:
        raise ValueError(f"{where}: got {short(text)}, want a number up to {LARGEST_SECONDS:g}")
    return value


def without_thousands(where: str, text: str) -> str:
    """The text of a number; ValueError for one such as 1,234, which may be a thousand or one and some."""
    if THOUSANDS.fullmatch(text):
        raise ValueError(f"{where}: got {short(text)}, whose comma may part thousands; want none, or a point")
    return text


def seconds(where: str, text: str) -> float:
    """A time: a number of seconds, or hours:minutes:seconds."""
    found = CLOCK.fullmatch(text.strip())
    if not found:
        return number(where, text)
    hours, minutes, rest = found.groups()
    total = 3600 * number(where, hours or "0") + 60 * int(minutes)
    return number(where, total) + float(rest.replace(",", "."))


def rate(where: str, text: str) -> Fraction:
    """Frames per second: 25, 29.97 (taken for 30000/1001), 23.98 (for 24000/1001) or 30000/1001."""
    from pipeline.packing.rates import exact_rate  # imports PyAV: not for --help

    above, slash, below = text.partition("/")
    value = Fraction(number(where, above))
    if slash:
        divisor = Fraction(number(where, below))
        value = value / divisor if divisor else Fraction(0)
    if not 0 < value <= 100_000:
        raise ValueError(f"{where}: got {short(text)}, want frames per second, such as 25 or 30000/1001")
    return value if slash else FILM.get(value) or exact_rate(value) or value


def seconds_text(value: float) -> str:
    """Seconds to the microsecond, without zeros that say nothing."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if value else "0"


@dataclass(frozen=True)
class Row:
    """One row of a table: what error messages call it, and its cells by column name."""

    where: str
    cells: dict[str, str]

    def cell(self, *names: str, absent: tuple[str, ...] = ("",)) -> str:
        """The first of these cells that is none of `absent`, or an empty text."""
        values = (self.cells.get(name, "") for name in names)
        return next((value for value in values if value not in absent), "")


def plain_name(text: str) -> str:
    """A column's name in lower case, with single spaces: `Start_Frame` is `start frame`."""
    return " ".join(text.replace("_", " ").split()).lower()


def header_of(text: str, fits: Callable[[set[str]], bool]) -> tuple[int, str, list[str]] | None:
    """(line, separator, column names) of the first of the upper lines whose columns fit; None without one."""
    for number_, line in enumerate(lines_of(text)[:HEADER_LINES]):
        for separator in SEPARATORS:
            try:
                cells = next(csv.reader([line], delimiter=separator), [])
            except csv.Error:
                continue
            names = [plain_name(cell) for cell in cells]
            if fits(set(names)):
                return number_, separator, names
    return None


def rows_of(path: Path, text: str, fits: Callable[[set[str]], bool], want: str) -> Iterator[Row]:
    """The rows of a table below the header that fits; empty rows and cells beyond the header are no rows.

    Raises ValueError where no header fits (`want` says what is missing) or a row has more cells than it.
    """
    found = header_of(text, fits)
    if found is None:
        raise ValueError(f"{path}: want a table with {want}")
    skipped, separator, names = found
    body = "\n".join(lines_of(text)[skipped + 1 :])
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator)
    try:
        for cells in reader:
            where = f"{path}, line {skipped + 1 + reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
                raise ValueError(f"{where}: got {len(cells)} cells, want {len(names)}")
            yield Row(where, {name: cell.strip() for name, cell in zip(names, cells, strict=False)})
    except csv.Error as error:
        raise ValueError(f"{path}, line {skipped + 1 + reader.line_num}: not a table: {error}") from None


def table_text(rows: list[list[object]], separator: str = ",") -> str:
    """Rows as CSV, or with another separator."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue()
