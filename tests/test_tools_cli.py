"""The `leantad` script: lists its commands without importing them, and runs them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from tools.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def test_help_lists_every_command_with_its_line_without_importing_any():
    code = (
        "import sys; from tools.cli import main; main(['--help'], standalone_mode=False)\n"
        "heavy = {'train', 'model', 'pipeline', 'torch', 'nvidia'} & {m.split('.')[0] for m in sys.modules}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())  # click may break a long line
    for name, (_, text) in COMMANDS.items():
        assert f"{name} {text}" in shown, name


def test_every_command_is_a_click_command_of_its_module():
    for name, (module, _) in COMMANDS.items():
        assert importlib.util.find_spec(module) is not None, f"{name}: no module {module}"
    group_context = click.Context(main)
    assert isinstance(main.get_command(group_context, "eval"), click.Command)
    assert main.get_command(group_context, "no-such-thing") is None


def test_a_command_gets_its_arguments_and_its_error_is_one_line():
    result = CliRunner().invoke(main, ["eval", "--detections", "d.json"])
    assert result.exit_code == 2
    assert (
        result.stderr.startswith("error: --detections: want --ground-truth")
        and result.stderr.count("\n") == 1
    )


def test_the_version_is_printed():
    assert CliRunner().invoke(main, ["--version"]).output.startswith("leantad")
