"""2,000 damaged files, each read by a command: see tests/fuzz.py, which tries more of them as a script."""

from __future__ import annotations

import pytest
from fuzz import KINDS, SEED, draw, try_many
from fuzz_mutations import mutations_of

COUNT = 2000


@pytest.mark.ci
@pytest.mark.slow  # 2,000 commands, in two processes
def test_no_damaged_file_breaks_a_command(tmp_path):
    faults = try_many(range(COUNT), tmp_path, jobs=2)
    assert not faults, f"seed {SEED}: {len(faults)} faults, such as {list(faults.items())[:5]}"


def test_an_input_is_the_same_whatever_was_tried_before_it(tmp_path):
    for kind in KINDS:  # one file of each kind, whatever is in it
        path = tmp_path / kind.files.replace("*", "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789")
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".json", ".h5", ".csv", ".yaml", ".safetensors"} <= names
    for number in range(50):
        file, arguments, _ = draw(tmp_path, number)
        assert (file, arguments) == draw(tmp_path, number)[:2]
        assert (tmp_path / file).is_file() and mutations_of(tmp_path / file)
