"""What the manual claims exists: links, settings, options, messages, the table of backbones."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import torch
from documented import (
    FOREIGN_OPTIONS,
    LAUNCH_OPTIONS,
    NAMES,
    PAGES,
    ROOT,
    anchors,
    blocks,
    links,
    occurs,
    prose,
)
from pydantic import BaseModel

from model.backbones import BACKBONES, build_backbone
from model.detector.settings import DetectorSettings
from model.network import Network
from model.settings import EncoderSettings
from tools.cli import COMMANDS
from tools.weights.matching import SOURCE_NAMES
from train.settings import Settings


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and ROOT in (target, *target.parents), link
        assert not heading or heading in anchors(target), link


def fields_of(model: type[BaseModel]) -> dict[str, object]:
    return {name: field.annotation for name, field in model.model_fields.items()}


def is_setting(name: str) -> bool:
    """Whether a dotted name is a setting or a group of them."""
    model: object = Settings
    for part in name.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in fields_of(model):
            return False
        model = fields_of(model)[part]
    return True


def parts_of_a_network() -> set[str]:
    """What optimizer.layer_lrs may name: the modules of the network that choose-settings.md begins with."""
    with torch.device("meta"):
        network = Network(EncoderSettings(backbone="r2plus1d_18"), DetectorSettings(), num_classes=2)
    return {name for name, _ in network.named_modules()}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_that_pages_name_exist(page):
    groups = "|".join(fields_of(Settings).keys() - {"seed"})
    found = re.findall(rf"(?<![\w./-])((?:{groups})\.[a-z0-9_]+(?:\.[a-z0-9_]+)*)", page.read_text())
    files = {name for name in found if name.endswith((".py", ".json", ".md", ".log"))}
    known = files | parts_of_a_network() if "layer_lrs" in page.read_text() else files
    assert not [name for name in found if name not in known and not is_setting(name)]


def known_options() -> set[str]:
    modules = (importlib.import_module(module) for module, _ in COMMANDS.values())
    options = {option for module in modules for p in module.main.params for option in p.opts}
    return options | {"--help"} | LAUNCH_OPTIONS | FOREIGN_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_and_commands_that_pages_name_exist(page):
    text = prose(page)
    named = {
        option
        for code in re.findall(r"`([^`]+)`", text)
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code)
    }
    assert not named - known_options()
    called = set(re.findall(r"`leantad ([a-z-]+)", text)) - {"COMMAND"}
    assert not called - COMMANDS.keys()


def test_every_command_has_its_place_in_the_readme_and_the_manual():
    readme = prose(ROOT / "README.md")
    manual = "\n".join(page.read_text() for page in PAGES)
    for name in COMMANDS:
        assert f"`{name}`" in readme, name
        assert name in manual.replace(readme, ""), name


def test_every_page_is_in_the_index_and_the_readme_fits_its_first_promise():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_where_is_what_names_files_and_their_functions():
    section = (ROOT / "README.md").read_text().split("## Where is what")[1]
    rows = re.findall(r"^\| [A-Z].*?\? \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert len(rows) == 5
    for files, functions in rows:
        files, functions = re.findall(r"`([\w/.]+)`", files), re.findall(r"`(\w+)`", functions)
        assert files and len(files) == len(functions)
        for file, function in zip(files, functions, strict=True):
            tree = ast.parse((ROOT / file).read_text())
            assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], file


def test_the_tree_in_the_readme_is_that_of_the_repository():
    block = next(b for b in blocks(ROOT / "README.md") if b.text.startswith("pipeline/"))
    folder, rooms = "", set()
    for line in block.text.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = ROOT / folder / (name if line.startswith(" ") else "")
        assert path.exists(), line
        rooms |= {folder + room for room in re.findall(r"^  (\w+/)", line)} | {folder}
        rooms |= {folder + room for room in re.findall(r"(?<= )(\w+/)(?= |$)", line)}
    sources = {
        f"{p.parent.relative_to(ROOT)}/"
        for room in ("pipeline", "model", "train", "tools")
        for p in (ROOT / room).rglob("__init__.py")
    }
    missing = {room for room in sources if room.count("/") < 3} - rooms
    assert not missing - {"tools/synthetic/"}, "a room that the tree does not name"


def test_pictures_have_words_for_those_who_do_not_see_them():
    for page in PAGES:
        for alternative, _ in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text()):
            assert len(alternative) > 30, page.name


@pytest.mark.slow
def test_messages_in_troubleshooting_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    torchs_own = {"CUDA out of memory"}
    assert len(messages) >= 25 and len(messages) == page.count("\n### ")
    assert not [message for message in messages if message not in torchs_own and not occurs(message)]
    assert not occurs("...: this message ... was never written")


def test_every_source_of_weights_is_in_the_table():
    page = (ROOT / "docs" / "choose-settings.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert not [name for name in SOURCE_NAMES if not any(f"`{name}`" in row for row in rows)]


def frames_after(backbone: torch.nn.Module, frames: int) -> int | None:
    """t for a clip of so many frames; None if the backbone refuses it."""
    with torch.device("meta"):
        try:
            return backbone(torch.zeros(1, 3, frames, 32, 32)).shape[2]
        except ValueError:
            return None


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_table_of_backbones_is_right(backbone):
    page = (ROOT / "docs" / "choose-settings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) \| (.+?) \| L(?: / (\d))? \|", page, re.MULTILINE)
    assert [row[0] for row in rows] == list(BACKBONES)
    _, features, millions, rule, divisor = next(row for row in rows if row[0] == backbone)
    with torch.device("meta"):
        network = build_backbone(backbone).eval()
    assert network.num_features == int(features)
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}" == millions
    multiple = {"any": 1, "multiple of 2": 2, "multiple of 4": 4}[rule]
    for frames in (16, 17, 18):
        allowed = frames % multiple == 0
        want = -(-frames // int(divisor or 1)) if allowed else None
        assert frames_after(network, frames) == want, frames
