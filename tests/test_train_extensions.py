"""DeepSpeed's extensions: one builder at a time, and a killed one holds up nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import cpuinfo
import pytest

from train import extensions
from train.optimizer import has_compiler

HOLD = """
import sys, time
from pathlib import Path
from train.extensions import build_lock
with build_lock(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "op").mkdir()
    (Path(sys.argv[1]) / "op" / "lock").touch()  # as PyTorch does while it builds
    time.sleep(60)
"""


def without_folder(monkeypatch):
    """Unset the variable; whatever the code sets is undone after the test."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "to be restored")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")


def test_a_killed_build_holds_up_nobody(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    while not (tmp_path / "op" / "lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with extensions.build_lock(tmp_path):
        assert not (tmp_path / "op" / "lock").exists()


def test_extensions_are_built_in_the_environment_unless_the_user_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    without_folder(monkeypatch)
    extensions.use_own_folder()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "elsewhere")
    extensions.use_own_folder()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "elsewhere"


def test_outside_an_environment_pytorchs_folder_stays(monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    without_folder(monkeypatch)
    extensions.use_own_folder()
    assert "TORCH_EXTENSIONS_DIR" not in os.environ


def test_the_ninja_of_the_environment_builds_whatever_else_is_in_path(tmp_path, monkeypatch):
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\necho 0.1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert subprocess.check_output(["ninja", "--version"], text=True) == "0.1\n"
    with extensions.own_ninja():
        assert subprocess.check_output(["ninja", "--version"], text=True).startswith(version("ninja"))
    assert os.environ["PATH"] == str(tmp_path)


class Builder:
    """Stands in for DeepSpeed's: builds an empty library."""

    name = "made_up"

    def load(self, verbose):
        from torch.utils.cpp_extension import _get_build_directory

        folder = _get_build_directory(self.name, verbose)
        with open(os.path.join(folder, "made_up.so"), "w"):
            pass


def test_a_build_is_announced_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    extensions.load_extensions([Builder()])
    assert "compiling DeepSpeed's made_up" in capsys.readouterr().err
    extensions.load_extensions([Builder()])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_choice_of_compiler_is_none(tmp_path, monkeypatch, value):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("c++", "ninja"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("CXX", value)
    assert has_compiler()
    extensions.load_extensions([Builder()])
    assert "CXX" not in os.environ  # PyTorch would run a program without a name


def test_a_process_asks_what_cpu_this_is_once(monkeypatch):
    asked = []
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: asked.append(1) or {"arch": "X86_64"})
    for _ in range(2):
        extensions.ask_cpu_once()
        assert cpuinfo.get_cpu_info() == {"arch": "X86_64"}
    assert len(asked) == 1
