"""tests/builtin_studies.py: its smallest version runs, and its settings load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builtin_studies import EPOCHS, SHARED, STUDIES, share

from train.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.ci
@pytest.mark.slow
def test_the_smallest_version_trains_frozen_and_end_to_end(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "builtin_studies.py"), "--work", str(tmp_path)]
    done = subprocess.run([*command, "--smallest"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.match(r"\| (true|false) \| 1 \| \d", line)]
    assert len(rows) == 2


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_value_of_a_study_makes_settings_and_the_first_is_the_shared_one(study):
    recipe, setting, values = STUDIES[study]
    shards = ["data.shards=gone", *EPOCHS]
    found = [load_settings(Path(recipe), [*shards, f"{setting}={json.dumps(value)}"]) for value in values]
    assert len({str(settings) for settings in found}) == len(values)
    if study in SHARED:
        assert found[0] == load_settings(Path("demo"), [*shards, "encoder.frozen=false"])


def test_a_shared_run_is_copied_once(tmp_path):
    theirs = tmp_path / "frozen" / "runs" / "frozen=false-seed0"
    theirs.mkdir(parents=True)
    (theirs / "metrics.json").write_text("{}")
    for _ in range(2):
        share(tmp_path, "ratio", 2)
    copies = tmp_path / "ratio" / "runs"
    assert [path.name for path in copies.iterdir()] == ["clip_ratio=0.3-seed0"]
    assert (copies / "clip_ratio=0.3-seed0" / "metrics.json").read_text() == "{}"
