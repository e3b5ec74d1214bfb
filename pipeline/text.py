"""Parts of messages: plurals, durations, the first names of many, suggestions, values cut short, columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 step`, `2,000 steps`; several: a plural that does more than add an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def first_names(names: Iterable[str], count: int = 3, *, quoted: bool = True) -> str:
    """The first `count` of the names, and how many more there are: `'a', 'b', 'c' and 5 more`."""
    names = list(names)
    shown = ", ".join(repr(name) if quoted else name for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


def suggestion(name: object, known: Collection[str], *, otherwise: str | None = None) -> str:
    """`did you mean 'num_clips'?`; where none is near, the known names, or `otherwise` if they are many."""
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


def short(value: object, length: int = 60, *, quoted: bool = True) -> str:
    """A value as one line of at most `length` characters, for a message; an error's text stays bare.

    quoted: whether a text stands in quotes.
    """
    if isinstance(value, str):
        value = value[: length + 1]  # no more is shown, and a text may have megabytes
    try:
        text = str(value) if isinstance(value, Exception) or not quoted else repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def bounded(line: str, length: int = 500) -> str:
    """A line of at most `length` characters; a longer one loses its middle, where it quotes an input.

    Its beginning says where, its end what to do.
    """
    if len(line) <= length:
        return line
    end = length // 3
    return f"{line[: length - end - 5]} ... {line[-end:]}"


def duration_text(seconds: float) -> str:
    """1 h 05 min, 3 min 12 s, or 4.2 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"


def columns(rows: Sequence[Sequence[object]], align: str = "<>", *, indent: str = "") -> str:
    """Rows of cells as lines of aligned columns, two spaces apart.

    align: `<` (left) or `>` (right) for each column; the last one also stands for all columns after it.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    formats = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    line = indent + "  ".join(formats)
    return "\n".join(line.format(*row).rstrip() for row in cells)
