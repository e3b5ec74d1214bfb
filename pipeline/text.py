"""Parts of messages: plurals, durations, the first names of many, suggestions, values cut short, columns.

And the one way back: a number out of a text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from unicodedata import category

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def plain_number(text: str) -> float:
    """The number in a text, such as 12, -0.5 or 1e-3, spaces around it or not; ValueError for anything else.

    Python's float also reads 0_2, nan, infinity and the digits of other scripts.
    """
    if not NUMBER.fullmatch(text.strip()):
        raise ValueError(f"got {short(text)}, want a number such as 12.5")
    return float(text)


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 step`, `2,000 steps`; several: a plural that does more than add an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def first_names(names: Iterable[str], count: int = 3, *, quoted: bool = True) -> str:
    """The first `count` of the names, and how many more there are: `'a', 'b', 'c' and 5 more`.

    A name is on one line, and cut to 80 characters.
    """
    names = list(names)
    first = ", ".join(_cut(repr(name), 80) if quoted else shown(name, 80) for name in names[:count])
    return f"{first} and {len(names) - count} more" if len(names) > count else first


def suggestion(name: object, known: Collection[str], *, otherwise: str | None = None) -> str:
    """`did you mean 'num_clips'?`; where none is near, the (first 20) known names, or `otherwise`."""
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {first_names(known, 20, quoted=False)}" if otherwise is None else otherwise


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


def on_one_line(text: str) -> str:
    """A text without line breaks; characters that steer a terminal, or are none, become escapes."""
    signs = " ".join(text.split())
    return "".join(ascii(sign)[1:-1] if category(sign) in ("Cc", "Cs") else sign for sign in signs)


def shown(name: str, length: int = 40) -> str:
    """A name for a table: on one line, and at most `length` characters, its beginning and its end."""
    return _cut(on_one_line(name), length)


def _cut(text: str, length: int) -> str:
    head = (length - 3) * 2 // 3
    return text if len(text) <= length else f"{text[:head]}...{text[len(text) - (length - 3 - head) :]}"


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
    """Rows of cells as lines of aligned columns, two spaces apart; each row is one line.

    align: `<` (left) or `>` (right) for each column; the last one also stands for all columns after it.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    cells = [[text if text.isprintable() else on_one_line(text) for text in row] for row in texts]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    formats = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    line = indent + "  ".join(formats)
    return "\n".join(line.format(*row).rstrip() for row in cells)
