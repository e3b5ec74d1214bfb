"""Reads the manual: its pages, fenced blocks, commands, links and headings; for tests/test_docs.py."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\S*)\s*$")
VARIABLE = re.compile(r"^([A-Z_]+)=(\S*)$")
# of deepspeed and torchrun; of docker
LAUNCH_OPTIONS = {"--num_gpus", "--num_accelerators", "--hostfile", "--standalone", "--nnodes"}
LAUNCH_OPTIONS |= {"--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"}
LAUNCH_OPTIONS |= {"--no_ssh", "--node_rank", "--master_addr"}
FOREIGN_OPTIONS = {"--gpus", "--shm-size", "--work"}
HOLE = "\x00"  # in the template of a message: something that is filled in


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and the number of its first line."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Documented:
    """One command line of the manual: environment, words, and the file that stdout goes to."""

    text: str
    line: int
    variables: dict[str, str]
    words: list[str]
    stdout: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, language, begin, lines = [], None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if language is None and fence:
            language, begin, lines = fence[1], number + 1, []
        elif language is not None and fence:
            found.append(Block(language, begin, "\n".join(lines) + "\n"))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page.name}: a fence is not closed"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    parts = re.split(r"^```.*?^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(parts)


def commands(block: Block) -> Iterator[Documented]:
    """The commands of a block of shell, without its remarks."""
    for offset, line in enumerate(block.text.splitlines()):
        words = shlex.split(line, comments=True)
        if words:
            yield parse(line.strip(), block.line + offset, words)


def parse(text: str, line: int, words: list[str]) -> Documented:
    """A command split into environment, words and redirection; pipes and lists are not for the manual."""
    forbidden = {"|", "&&", ";", "\\", "<", ">>"} & set(words)
    assert not forbidden, f"line {line}: {forbidden} in a command: one plain command a line, please"
    stdout = None
    if ">" in words:
        place = words.index(">")
        words, stdout = words[:place], words[place + 1]
    variables = {}
    while found := VARIABLE.match(words[0]):
        variables[found[1]] = found[2]
        words = words[1:]
    return Documented(text, line, variables, words, stdout)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page."""
    return {anchor(found) for found in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def links(page: Path) -> list[str]:
    """Where the links of a page lead."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@cache
def templates() -> tuple[str, ...]:
    """Every text in the source, implicit concatenations joined; HOLE stands for what f-strings fill in."""
    found = []
    for folder in ("pipeline", "model", "train", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(found)


def occurs(message: str) -> bool:
    """Whether one text of the source holds the pieces of the message, in order; "..." stands for any."""
    pieces = [piece.strip() for piece in message.split("...") if len(piece.strip()) > 1]
    pattern = re.compile(".*?".join(map(re.escape, pieces)), re.DOTALL)
    return any(pattern.search(text) for text in templates())
