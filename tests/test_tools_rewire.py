"""leantad rewire: one line per module with its bytes, names of networks, and what is refused."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from commands import call
from foreign_blocks import Basic
from torch import nn

from tools.benchmarks.libraries import build_network
from tools.rewire import main, parse_shape

SMALL = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64, "image_size": 32, "patch_size": 8,
}  # fmt: skip

run = partial(call, main)


@pytest.fixture
def timm(monkeypatch) -> dict:
    """A library of that name; how it was called."""
    calls: dict = {}

    def create_model(name: str, **options: object) -> nn.Module:
        calls.update(name=name, **options)
        if name != "small":
            raise RuntimeError(f"Unknown model ({name})")
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Basic(), Basic(nn.Conv2d(4, 4, 1)), Basic()))

    module = ModuleType("timm")
    module.create_model, module.__spec__ = create_model, torch.__spec__
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls


def test_every_module_is_a_line_with_what_it_became_why_and_its_bytes(timm):
    result = run("timm:small", "--input", "2x3x16x16")
    assert result.exit_code == 0, result.output
    first, second, third, last = result.stdout.splitlines()
    assert first.split()[:3] == ["1.0", "reversible", "1"] and "KiB" in first and "residual" in first
    assert second.split()[:2] == ["1.1", "transition"] and "recomputed" in second
    assert third.startswith("1.2") and last == "2 reversible, 1 transition"
    assert timm == {"name": "small", "pretrained": False}  # nothing is downloaded


def test_the_document_has_the_same_rows(timm, tmp_path):
    result = run("timm:small", "--json", "--out", str(tmp_path / "rows.json"))
    document = json.loads(result.stdout)
    assert json.loads((tmp_path / "rows.json").read_text()) == document
    assert [row["kind"] for row in document["modules"]] == ["reversible", "transition", "reversible"]
    before, after = (sum(row[f"bytes_{when}"] for row in document["modules"]) for when in ("before", "after"))
    assert 0 < after < before
    again = run("timm:small", "--out", str(tmp_path / "rows.json"))
    assert again.exit_code == 2 and "--force replaces it" in again.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_a_folder_of_hugging_face_is_read_without_running_its_code(tmp_path):
    own_code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **own_code}))
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')\n")
    result = run(f"hf:{tmp_path}")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("reversible  2") == 3
    options = {name: value for name, value in SMALL.items() if name != "model_type"}
    for name in ("hf:vit", "hf:ViTModel"):
        assert len(build_network(name, options).state_dict()) == len(
            build_network("hf:vit", options).state_dict()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet50"], "got 'resnet50', want timm:NAME"),
        (["timm:resnet05"], "timm:resnet05: timm has no such network (Unknown model (resnet05))"),
        (["timm:hf-hub:a/b"], "want a name that timm.list_models() knows"),
        (["hf:MCG-NJU/videomae-base"], "no such folder, and nothing is downloaded"),
        (["hf:nosuch"], "transformers has no such network"),
        (["timm:small", "--input", "3"], "--input: got '3', want the shape of one batch, as 2x3x224x224"),
        (["timm:small", "--input", "2x4x8x8"], "timm:small: it does not run on --input (Given groups"),
    ],
)
def test_what_cannot_be_is_one_line(timm, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("timm:resnet50")
    assert result.exit_code == 2
    command = 'pip install -c constraints.txt "leantad[timm]"'
    assert result.stderr == f"error: timm:resnet50: timm is not installed (in the checkout: {command})\n"


def test_a_shape():
    assert parse_shape("2x3X8x8") == (2, 3, 8, 8)
