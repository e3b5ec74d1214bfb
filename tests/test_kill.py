"""Commands that are killed at random moments and started again give what an undisturbed one gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill.py")


@pytest.mark.ci
@pytest.mark.slow
def test_twenty_rounds_of_killed_commands_end_like_undisturbed_ones():
    done = subprocess.run([sys.executable, str(SCRIPT), "--rounds", "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("20 rounds, ") and done.stdout.endswith(", 0 rounds with a problem\n")
