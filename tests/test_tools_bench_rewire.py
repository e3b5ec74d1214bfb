"""bench-rewire: its rows, and the file it keeps them in."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tools.bench_rewire import MODES, main


@pytest.mark.slow
def test_the_document_is_kept_in_a_file_and_not_replaced(tmp_path):
    small = ["--backbone", "r2plus1d_tiny", "--clip", "3x8x32x32", "--repeats", "1", "--device", "cpu"]
    arguments = [*small, "--json", "--out", str(tmp_path / "rows.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads((tmp_path / "rows.json").read_text()) == document
    (times,), errors = document["times"], document["errors"]
    assert all(times[f"{mode}_seconds"] > 0 for mode in MODES)
    exact = next(row for row in errors if row["exact"])
    assert exact["reconstruction_error"] == 0  # on a grid, beta 1 is inverted without rounding
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2 and "--force replaces it" in again.stderr


@pytest.mark.parametrize(("name", "hint"), [("r2plus1d_43", "did you mean 'r2plus1d_34'?"), ("", "known: ")])
def test_an_unknown_backbone_is_refused_with_a_suggestion(name, hint):
    result = CliRunner().invoke(main, ["--backbone", "r2plus1d_tiny", "--backbone", name])
    assert result.exit_code == 2
    assert f"--backbone: got {name!r}" in result.stderr and hint in result.stderr
