"""bench-memory: its rows, its errors."""

from __future__ import annotations

import json
from functools import partial

import pytest
from commands import call, refused

from tools.bench_memory import main
from tools.benchmarks.memory import MODES

SMALL = ["--backbone", "r2plus1d_tiny", "--clip", "3x8x16x16", "--device", "cpu"]

bench = partial(call, main)


@pytest.mark.slow
def test_rows_hold_every_mode_and_reversible_saves_least(tmp_path):
    path = tmp_path / "rows.json"
    result = bench(*SMALL, "--clips", "4", "--dtype", "float32", "--out", str(path))
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    rows = {row["mode"]: row for row in report["rows"]}
    assert tuple(rows) == MODES
    assert all(row["peak_mib"] >= row["saved_mib"] > 0 and row["seconds"] > 0 for row in rows.values())
    assert rows["reversible"]["saved_mib"] < rows["checkpoint"]["saved_mib"] < rows["plain"]["saved_mib"]
    assert report["settings"]["clip"] == [3, 8, 16, 16]
    assert all(mode in result.output for mode in MODES)
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


@pytest.mark.slow
def test_memory_of_sampled_encoding_does_not_grow_with_the_ratio(tmp_path):
    path = tmp_path / "rows.json"
    options = ["--clips", "8", "--clips-per-forward", "2", "--ratio", "0.25", "--ratio", "1"]
    result = bench(*SMALL, *options, "--out", str(path))
    assert result.exit_code == 0, result.output
    rows = {(row["mode"], row["ratio"]): row for row in json.loads(path.read_text())["rows"]}
    assert len(rows) == 6
    for mode in MODES:
        few, all_of_them = rows[mode, 0.25], rows[mode, 1.0]
        # Two clips are encoded at a time. The kept clips themselves are uint8, 6 KB each.
        assert few["saved_mib"] == pytest.approx(all_of_them["saved_mib"], abs=0.03)


@pytest.mark.slow
def test_lower_precision_saves_fewer_bytes(tmp_path):
    found = []
    for dtype in ("float32", "bfloat16"):
        path = tmp_path / f"{dtype}.json"
        assert bench(*SMALL, "--dtype", dtype, "--out", str(path)).exit_code == 0
        found.append(json.loads(path.read_text())["rows"][0]["saved_mib"])
    assert found[1] < found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", "3x16x112"], "--clip: got '3x16x112', want CxLxHxW"),
        (["--clip", "1x8x16x16"], "--clip: got 1 channels"),
        (["--clip", "3x8x0x16"], "--clip: got '3x8x0x16'"),
        (["--backbone", "r2plus1d_33"], "did you mean 'r2plus1d_34'?"),
        (["--ratio", "1.5"], "clip sampling ratio: got 1.5"),
        (["--beta", "1.5"], "beta: got 1.5"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_measured(options, message):
    assert message in refused(main, *SMALL, *options)
