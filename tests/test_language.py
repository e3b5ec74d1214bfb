"""One word for one thing: names and docstrings of the four rooms use the words of CONTRIBUTING.md's list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "model", "train", "tools", "leantad.py")
SOURCES = [ROOT / "leantad.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]

# A word of a name (piece_frames has two, PieceStep has two) -> what to write instead.
NAMES = {
    "about": "metadata, or what it is: title, source",
    "agree": "any_rank, all_ranks",
    "deal": "rank_indices, assign",
    "deals": "rank_indices, assign",
    "dealt": "assigned",
    "fact": "statistic, metadata",
    "facts": "statistics (of a data set), metadata (of a file)",
    "finished": "loaded, complete, stopped",
    "form": "spec (EncodingSpec), format, layout",
    "forms": "specs, formats, layouts",
    "how": "options, mode, method",
    "judge": "match",
    "judged": "matches, matched",
    "learns": "has_trainable_parameters, is_trainable",
    "looked": "viewed, searched",
    "marked": "excludes_zero, selected, or what the mark means",
    "material": "data, content (PageData)",
    "outcome": "result (PackResult), error kind",
    "outcomes": "results, error kinds",
    "piece": "chunk, clips_per_forward, part",
    "pieces": "chunks, parts",
    "place": "index, position, column, slot",
    "places": "indices, positions, columns",
    "retreat": "inverse_step",
    "said": "message, text",
    "taught": "trained",
    "told": "message, text, reported",
    "truths": "ground_truth",
    "vouched": "supplied, declared",
    "walk": "pass, traverse (BackwardPass), visit",
    "words": "text, arguments, labels",
}
# Whole class names, with or without an underscore in front.
CLASSES = {
    "Facts": "VideoMetadata, DatasetStatistics",
    "Form": "EncodingSpec",
    "Matched": "Matches",
    "Outcome": "PackResult, EvaluationInput",
    "Piece": "what it is a part of: ClipChunk",
    "Truth": "GroundTruth, GroundTruthVideo",
}
# Class names that used to have several meanings: where the one class stands that may have it.
ONE_MEANING = ("Plan", "Settings", "Step")
LAYOUTS = ROOT / "model" / "backbones"  # a Layout is the sizes of a backbone, and nothing else
# In docstrings only what is no ordinary English there: a pattern -> what to write instead.
SENTENCES = {
    r"\bdeal(s|t|ing)? (out|over|exactly)|\b(is|are) dealt\b": "assign to ranks",
    r"\bjudge[sd]?\b|\bjudging\b": "match, compare",
    r"\blearns\b": "is trained, has trainable parameters",
    r"\bretreat(s|ed)?\b": "step backwards, invert",
    r"\btaught\b|\bteach(es)?\b": "trained on, used as a target",
    r"\bvouch(ed|es)?\b": "supplied by the caller",
    r"\b(is|are|be|was) (said|told)\b|\btold (on|by|otherwise)\b|\bunless told\b": "reported, printed, set",
    r"\blooked at\b": "read, viewed, compared",
    r"\bthe words? about\b": "record, description",
    r"\bedge between\b": "conventions, interface",
    r"\bpiece by piece\b|\b(a|one|each|every|last|first) pieces? of (clips|frames)\b": "chunk by chunk",
    r"\bwhat (it|they) says? about\b": "its record, its entry",
    r"\bfills? up\b": "pad",
}


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of the functions, classes, arguments, variables, attributes and imports of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, "lineno", 0), node.asname


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of a file, those of attributes as well."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for statement in node.body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.lineno, value.value


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case: piece_frames and PieceFrames have the same two."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [word.lower() for word in found]


def advice_on(name: str) -> str | None:
    """What to write in place of a name, None where it may stay."""
    if name.lstrip("_") in CLASSES:
        return CLASSES[name.lstrip("_")]
    return next((NAMES[word] for word in words_of(name) if word in NAMES), None)


def problems(path: Path) -> list[str]:
    """One line for every banned name and sentence of a file, with what to write instead."""
    tree, found = ast.parse(path.read_text()), []
    modules = [(1, path.stem)] if path.stem != "__init__" else [(1, path.parent.name)]
    for line, name in [*modules, *defined_names(tree)]:
        if advice := advice_on(name):
            found.append(f"{path.relative_to(ROOT)}:{line}: {name}; write {advice}")
    for line, text in docstrings(tree):
        for pattern, advice in SENTENCES.items():
            for match in re.finditer(pattern, re.sub(r"\s+", " ", text), re.IGNORECASE):
                found.append(f'{path.relative_to(ROOT)}:{line}: "{match[0]}"; write {advice}')
    return found


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_names_and_docstrings_use_the_words_of_the_list(room):
    found = [line for path in SOURCES if path.relative_to(ROOT).parts[0] == room for line in problems(path)]
    assert not found, "CONTRIBUTING.md has the list of words:\n" + "\n".join(found)


@pytest.mark.slow
def test_a_class_name_has_one_meaning():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))
    several = {name: homes[name] for name in ONE_MEANING if len(homes.get(name, [])) > 1}
    assert not several, "one class each; call the others after what they plan, set or do"
    assert all((ROOT / home).parent == LAYOUTS for home in homes.get("Layout", []))


def test_the_list_is_held_against_whole_words_only():
    assert advice_on("piece_frames") and advice_on("PieceStep") and advice_on("_piece")
    assert not advice_on("masterpieces") and not advice_on("replace") and not advice_on("platform")
    assert advice_on("Truth") and advice_on("_Truth") and not advice_on("GroundTruth")


def test_foreign_names_may_be_used_but_not_defined(tmp_path):
    tree = ast.parse("import os\nfor folder, _, files in os.walk('.'):\n    place = files[0]\n")
    assert [name for _, name in defined_names(tree) if advice_on(name)] == ["place"]


def test_contributing_has_the_list():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", page.split("## Words")[1], re.MULTILINE)
    assert 28 <= len(rows) <= 36, "about 30 lines"
    words = " ".join(word for row in rows for word in row)
    for term in ("clip", "window", "anchor", "tIoU", "NMS", "ground truth", "chunk", "shard", "key frame"):
        assert term in words, term
