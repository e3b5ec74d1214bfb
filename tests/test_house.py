"""The house rules of the source tree: import direction, one file per heavy library, names, recipes."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from tools.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
NEUTRAL = "settings_group"  # a module beside the folders: all may import it, it imports none of them
FACADE = "leantad"  # another, the Python API: it imports the folders and is imported by none of them
ALLOWED = {
    NEUTRAL: set(),
    "pipeline": {NEUTRAL, "pipeline"},
    "model": {NEUTRAL, "model"},
    "train": {NEUTRAL, "pipeline", "model", "train"},
    "tools": {NEUTRAL, "pipeline", "model", "train", "tools"},
    FACADE: {"pipeline", "train", "tools"},
}
MODULES = (NEUTRAL, FACADE)
IN_FOLDERS = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))
SOURCES = [*(ROOT / f"{name}.py" for name in MODULES), *IN_FOLDERS]


def imported(path: Path) -> set[str]:
    """Absolute module names that a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join([*base, *([node.module] if node.module else [])]))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = {name.split(".")[0] for name in imported(path)} & set(ALLOWED)
    assert ours <= ALLOWED[room], f"{path}: {room} may import {ALLOWED[room]}, imports {ours}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "library, home", [("nvidia", "pipeline/decode.py"), ("deepspeed", "train/engine.py")]
)
def test_a_heavy_library_is_imported_by_one_file_alone(library, home):
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users == {home}


@pytest.mark.parametrize("room", ALLOWED)
def test_the_generic_package_names_resolve_inside_this_checkout(room):
    inside = ROOT / f"{room}.py" if room in MODULES else ROOT / room / "__init__.py"
    assert Path(importlib.import_module(room).__file__) == inside


def test_no_file_of_train_shadows_the_standard_library():
    names = {path.stem for path in (ROOT / "train").glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__", "cli"}


def test_the_files_of_tools_are_exactly_the_commands():
    """But for train and eval, which train/ has; `leantad make-shards` is tools/make_shards.py, and so on."""
    modules = {name: module for name, (module, _) in COMMANDS.items()}
    assert (modules.pop("train"), modules.pop("eval")) == ("train.main", "train.eval")
    assert set(modules.values()) == {f"tools.{name}" for name in TOOLS}
    for name, module in modules.items():
        assert module.startswith(f"tools.{name.replace('-', '_')}"), name


@pytest.mark.slow
def test_the_rooms_of_tools_are_parts_of_commands_and_no_command_is_a_part():
    """A folder of tools/ is imported by a command, or by another folder; nothing imports a command."""
    files = {path: imported(path) for path in SOURCES if path.is_relative_to(ROOT / "tools")}
    names = set().union(*files.values())
    assert not names & {f"tools.{name}" for name in TOOLS}
    for room in {path.parent for path in files} - {ROOT / "tools"}:
        package = ".".join(room.relative_to(ROOT).parts)
        outside = set().union(*(found for path, found in files.items() if path.parent != room))
        assert any(name.startswith(package) for name in outside), f"nothing uses {package}"


def test_every_package_folder_is_listed_in_setup():
    listed = re.search(r"packages=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.S)[1]
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in IN_FOLDERS}
    assert folders == set(re.findall(r'"(.+?)"', listed))


def test_the_only_modules_beside_the_folders_are_the_facade_and_the_neutral_one_and_setup_lists_them():
    beside = {path.stem for path in ROOT.glob("*.py")} - {"setup"}
    assert beside == set(MODULES)
    assert f'py_modules=["{FACADE}", "{NEUTRAL}"]' in (ROOT / "setup.py").read_text()


@pytest.mark.slow
def test_nothing_imports_tools_but_the_facade_and_nothing_imports_that():
    importers = {path: {name.split(".")[0] for name in imported(path)} for path in SOURCES}
    users = {path for path, names in importers.items() if "tools" in names}
    assert {path.relative_to(ROOT).parts[0] for path in users} == {"tools", f"{FACADE}.py"}
    assert not [path for path, names in importers.items() if FACADE in names]


def test_the_facade_has_no_logic():
    """Its functions hand their arguments on: no loop, no branch, no error caught."""
    tree = ast.parse((ROOT / f"{FACADE}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        blocks = ast.For | ast.While | ast.If | ast.Try | ast.With | ast.FunctionDef
        inner = [node for node in ast.walk(function) if isinstance(node, blocks) and node is not function]
        assert not inner, f"{function.name}: belongs into tools/ or train/, where the command has it, too"
    assert {function.name for function in functions} == {"load", "evaluate", "pack", "train"}


def test_nothing_is_unpickled():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"pickle\.(load|Unpickler)|from pickle import (load|Unpickler\b)", text), path
        for call in re.findall(r"torch\.load\(.*?\)", text, re.S):
            assert "weights_only=True" in call, f"{path}: {call}"
