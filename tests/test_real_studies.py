"""The tables of docs/results.md: their smallest versions run, and their settings are what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_studies import TABLES, ablate_words

from train.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [(table, study) for table in TABLES for study in TABLES[table].studies]


@pytest.mark.ci
@pytest.mark.parametrize("table", TABLES)
def test_the_smallest_version_of_a_table_runs_from_raw_footage(shared_real, with_timm, tmp_path, table):
    command = [sys.executable, str(ROOT / "tests" / "real_studies.py"), table, str(shared_real)]
    command += ["--work", str(tmp_path), "--smallest"]
    environment = with_timm if table == "image-network" else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.match(r"\| \S+ \| 1 \| \d", line)]
    assert len(rows) == 1
    if table == "ceiling":
        by_chance, trained = (
            [float(value) for value in line.rpartition(") ")[2].split(", ")]
            for line in done.stdout.splitlines()
            if ": mAP at (0.1, 0.2, 0.3, 0.4, 0.5) " in line
        )
        assert by_chance == sorted(by_chance, reverse=True) and 0 < by_chance[-1] < by_chance[0] < 100
        assert len(trained) == len(by_chance) == 5
    elif table == "people":
        assert "frozen=true-seed0, frames shuffled: average" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("table", "name"), STUDIES)
@pytest.mark.parametrize("smallest", [False, True])
def test_every_value_of_a_study_makes_settings(table, name, smallest):
    study = TABLES[table].studies[name]
    words = ablate_words(study, seeds=3, smallest=smallest)
    sets = [words[number + 1] for number, word in enumerate(words) if word == "--set"]
    varied, _, values = words[words.index("--vary") + 1].partition("=")
    assert varied == study.vary[0] and len(values.split(",")) == (1 if smallest else len(study.vary[1]))
    for value in values.split(","):
        load_settings(Path(study.recipe), [*sets, f"{varied}={value}", "data.shards=gone"])
    assert words[words.index("--seeds") + 1] == ("1" if smallest or study.one_seed else "3")


def test_the_page_names_the_command_of_each_table():
    page = (ROOT / "docs" / "results.md").read_text()
    assert all(f"real_studies.py {table} FOLDER" in page for table in TABLES)
